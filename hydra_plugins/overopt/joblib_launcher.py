"""Several jobs at a time on this machine. Of Hydra's own joblib launcher one that is killed takes the others along."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.overopt.jobs import JobLauncher, died, run
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
        from joblib import Parallel, delayed

        shared = self.shared()
        self.expect(job_overrides)
        jobs = (delayed(apart)(run, list(each), initial_job_idx + k, *shared) for k, each in enumerate(job_overrides))
        return Parallel(self.n_jobs, prefer="threads", batch_size=1, pre_dispatch="n_jobs")(jobs)


def apart(function: Callable[..., JobReturn], *job: Any) -> JobReturn:
    """Runs a job in a process that nobody else uses; a thread waits for it."""
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    with ProcessPoolExecutor(max_workers=1) as process:
        try:
            return process.submit(function, *job).result()
        except BrokenProcessPool as error:
            return died(error)
