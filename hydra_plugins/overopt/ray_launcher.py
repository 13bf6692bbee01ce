"""Jobs on Ray. Hydra's own Ray launcher brings boto3 and more, for the clusters that it rents by itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

OBJECT_STORE_BYTES = 100 * 1024**2  # jobs exchange next to nothing; Ray would take a third of the memory


class RayLauncher(Launcher):
    """Runs every job as a Ray task.

    Args:
        init: options of `ray.init`; without an `address` a Ray of this machine alone is started, and ended.
        remote: what a task needs, such as num_cpus.
    """

    def __init__(self, init: DictConfig, remote: DictConfig):
        self.init: Any = OmegaConf.to_container(init, resolve=True)
        self.remote: Any = OmegaConf.to_container(remote, resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU: as anywhere else
        import ray  # seconds; only where it is used

        setup_globals()
        local = (
            {} if self.init.get("address") else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        )
        if not ray.is_initialized():
            ray.init(**local | self.init)
        run = ray.remote(**self.remote)(_run)
        shared = [
            ray.put(part) for part in (self.hydra_context, self.task_function, self.config, Singleton.get_state())
        ]
        jobs = [
            run.remote(str(Path.cwd()), list(overrides), initial_job_idx + k, *shared)
            for k, overrides in enumerate(job_overrides)
        ]
        return [_result(job) for job in jobs]


def _run(
    root: str,
    overrides: list[str],
    number: int,
    hydra_context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    singletons: Any,
) -> JobReturn:
    """One job, in a process of Ray's."""
    os.chdir(root)
    setup_globals()
    Singleton.set_state(singletons)
    job = hydra_context.config_loader.load_sweep_config(config, overrides)
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


def _result(job: Any) -> JobReturn:
    """What the job returned; nan of one whose process died, so that the others are waited for."""
    import ray

    try:
        return ray.get(job)
    except ray.exceptions.RayError as error:
        print(f"a job's process ended: {str(error).splitlines()[0]}")
        return JobReturn(status=JobStatus.COMPLETED, _return_value=float("nan"))
