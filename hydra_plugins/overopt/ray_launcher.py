"""Jobs on Ray. Hydra's own Ray launcher brings boto3 and more, for the clusters that it rents by itself."""

import os
import secrets
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.overopt.jobs import PATIENCE, JobLauncher, died, run
from src.errors import UserError, first_line
from src.stopping import listen

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
OBJECT_STORE_BYTES = 100 * 1024**2  # jobs exchange next to nothing; Ray would take a third of the memory


class RayLauncher(JobLauncher):
    """Runs every job as a Ray task.

    Args:
        init: options of `ray.init`; without an `address` a Ray of this machine alone is started, and ended.
        remote: what a task needs, such as num_cpus.
    """

    def __init__(self, init: DictConfig, remote: DictConfig):
        self.init: Any = OmegaConf.to_container(init, resolve=True)
        self.remote: Any = OmegaConf.to_container(remote, resolve=True)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU: as anywhere else
        own = not self.init.get("address") and "RAY_ADDRESS" not in os.environ
        if own and not any(key in os.environ for key in AUTHENTICATION):  # of its own key it would put a copy at home
            os.environ |= dict(zip(AUTHENTICATION, ("token", secrets.token_hex(32)), strict=False))
        import ray  # seconds; only where it is used, and it reads the variables

        if not ray.is_initialized():
            self._begin({"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if own else {})
        try:
            task: Any = ray.remote(**self.remote)(run)
        except (TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher.remote: {first_line(error)}") from error
        shared = [ray.put(part) for part in self.shared()]
        jobs = [task.remote(list(each), initial_job_idx + k, *shared) for k, each in enumerate(job_overrides)]
        self.expect(job_overrides)
        with self.passing_on(lambda _: _end(jobs)):
            return [_result(job) for job in jobs]

    def _begin(self, options: dict[str, Any]) -> None:
        import ray

        try:
            ray.init(**options | self.init)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"hydra.launcher.init: no Ray there or none like that: {first_line(error)}") from error
        finally:
            listen(whoever_did=True)  # Ray's own handlers end the process without a word


def _end(jobs: list[Any]) -> None:
    """They are interrupted, and killed if they don't end."""
    import ray

    for job in jobs:
        ray.cancel(job)
    ray.wait(jobs, num_returns=len(jobs), timeout=PATIENCE)
    ray.shutdown()


def _result(job: Any) -> JobReturn:
    import ray

    try:
        return ray.get(job)
    except ray.exceptions.RayError as error:
        return died(error)
