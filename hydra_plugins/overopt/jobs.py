"""One job of a sweep, in whatever process it runs."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from src.errors import first_line
from src.runs.sweeps import expect
from src.screen import survive_its_end
from src.stopping import GRACE, begun, leave, listen, stopped_by

PATIENCE = GRACE + 5  # s that jobs which are told to stop have for it


class JobLauncher(Launcher):
    """What our launchers have in common. A job whose process dies costs no other one anything."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def expect(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Called once jobs can be launched: from here on one that is not heard of has failed."""
        expect(self.config, job_overrides)

    @contextmanager
    def passing_on(self, tell: Callable[[int], None]) -> Iterator[None]:
        """Where the wait for the jobs is interrupted, `tell` passes the signal on to them, and waits for their end."""
        try:
            yield
        except KeyboardInterrupt as stop:
            leave()
            stopped = stopped_by(stop)
            tell(stopped.signal)
            raise stopped from None

    def shared(self) -> tuple[str, HydraContext, TaskFunction, DictConfig, Any]:
        """What `run` needs beside a job's own overrides and number."""
        setup_globals()
        return str(Path.cwd()), self.hydra_context, self.task_function, self.config, Singleton.get_state()


def run(
    overrides: Sequence[str],
    number: int,
    root: str,
    hydra_context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    singletons: Any,
) -> JobReturn:
    """Composes the job and runs it, in the repository's root."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":  # whose jobs submitit stops, and queues again, by itself
        listen(whoever_did=True)
    begun()
    survive_its_end()
    os.chdir(root)
    setup_globals()
    Singleton.set_state(singletons)
    job = hydra_context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
    HydraConfig.instance().set_config(job)
    return run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def died(error: BaseException) -> JobReturn:
    """What a job returns whose process has died: nan."""
    print(f"a job's process ended: {first_line(error)}", flush=True)
    return JobReturn(status=JobStatus.COMPLETED, _return_value=float("nan"))
