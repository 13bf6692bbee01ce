"""Jobs on Slurm, by submitit. Hydra's own launcher stops waiting for all of them when one is killed."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.overopt.jobs import PATIENCE, JobLauncher, died, run
from src.errors import UserError, first_line

ANYWHERE = {  # options that submitit has for any cluster
    "name", "timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "stderr_to_stdout",
}  # fmt: skip


class SlurmLauncher(JobLauncher):
    """Submits the jobs as one array and waits for them; one that is timed out or preempted is queued again.

    Args:
        submitit_folder: where jobs and their logs are written.
        max_num_timeout: how often a job is queued again after a timeout.
        options: submitit's, for the cluster; null leaves it to the cluster.
    """

    cluster = "slurm"

    def __init__(self, submitit_folder: str, max_num_timeout: int = 10, **options: Any):
        self.folder, self.max_num_timeout, self.options = submitit_folder, max_num_timeout, options

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import submitit

        timeouts = {f"{self.cluster}_max_num_timeout": self.max_num_timeout}
        options = {key if key in ANYWHERE else f"{self.cluster}_{key}": value for key, value in self.options.items()}
        shared, numbers = self.shared(), range(initial_job_idx, initial_job_idx + len(job_overrides))
        try:
            executor = submitit.AutoExecutor(self.folder, self.cluster, **timeouts)
            executor.update_parameters(**options)
            jobs = self.submit(executor, _Job(shared), [list(each) for each in job_overrides], numbers)
        except (RuntimeError, NameError) as error:  # of the cluster; of an option
            raise UserError(f"{self.cluster} does not take the jobs: {first_line(error)}") from error
        self.expect(job_overrides)
        with self.passing_on(lambda signum: self.end(signum, jobs)):
            return [_result(job) for job in jobs]

    def submit(self, executor: Any, *arrays: Any) -> list[Any]:
        """A job of the array for each row of the arrays."""
        return executor.map_array(*arrays)

    def end(self, signum: int, jobs: Sequence[Any]) -> None:
        """The cluster's jobs are the cluster's: whoever waits for them may end."""
        print(f"the jobs go on in Slurm; to end them: scancel {jobs[0].job_id.split('_')[0]}", file=sys.stderr)


class LocalLauncher(SlurmLauncher):
    """The same on this machine; all jobs start at once."""

    cluster = "local"

    def submit(self, executor: Any, *arrays: Any) -> list[Any]:
        """Starts a process for each that watches over it. Ctrl-C, which it has a traceback for, is nothing to it."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return super().submit(executor, *arrays)
        finally:
            signal.signal(signal.SIGINT, before)

    def end(self, signum: int, jobs: Sequence[Any]) -> None:
        """They are told to stop, by those who watch over them; who are killed in the end."""
        latest = time.monotonic() + PATIENCE
        for last in (signal.SIGTERM, signal.SIGKILL):
            for job in jobs:
                with suppress(ProcessLookupError):
                    os.kill(int(job.job_id), last)
            while time.monotonic() < latest and not all(job.done() for job in jobs):
                time.sleep(0.1)


class _Job:
    """A job that submitit can start, and start again."""

    def __init__(self, shared: tuple[Any, ...]):
        self.shared = shared

    def __call__(self, overrides: Sequence[str], number: int) -> JobReturn:
        return run(overrides, number, *self.shared)

    def checkpoint(self, *job: Any) -> Any:
        """What is queued again: the same, for it goes on from its run's checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *job)


def _result(job: Any) -> JobReturn:
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError as error:
        return died(error)
