"""Several jobs at a time on this machine. Of Hydra's own joblib launcher one that is killed takes the others along."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.overopt.jobs import PATIENCE, JobLauncher, died, run
from src.errors import UserError


class JoblibLauncher(JobLauncher):
    """Runs every job in a process of its own.

    Args:
        n_jobs: how many at a time; -1 for as many as there are cores, -2 for one less.
    """

    def __init__(self, n_jobs: int, **_: Any):  # Hydra's own launcher, where it is installed, adds its options
        if n_jobs == 0:
            raise UserError("hydra.launcher.n_jobs=0 would run nothing: choose 1 or more, or -1 for all cores.")
        self.n_jobs = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from joblib import effective_n_jobs

        shared = self.shared()
        self.expect(job_overrides)
        at_once: set[Any] = set()
        with ThreadPoolExecutor(effective_n_jobs(self.n_jobs)) as threads:
            jobs = [
                threads.submit(apart, at_once, run, list(each), initial_job_idx + k, *shared)
                for k, each in enumerate(job_overrides)
            ]
            with self.passing_on(lambda signum: _end(signum, jobs, at_once)):
                return [job.result() for job in jobs]


def apart(at_once: set[Any], function: Callable[..., JobReturn], *job: Any) -> JobReturn:
    """Runs a job in a process that nobody else uses; a thread waits for it, and `at_once` has it as long as it runs."""
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    with ProcessPoolExecutor(max_workers=1) as process:
        at_once.add(process)
        try:
            return process.submit(function, *job).result()
        except BrokenProcessPool as error:
            return died(error)
        finally:
            at_once.discard(process)


def _end(signum: int, jobs: list[Future], at_once: set[Any]) -> None:
    """Jobs that wait never begin; those that run are told to stop, and killed if they don't."""
    for job in jobs:
        job.cancel()
    for process in list(at_once):
        for pid in list(process._processes):
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
    wait(jobs, PATIENCE)
    for process in list(at_once):
        process.shutdown(wait=False, kill_workers=True)
