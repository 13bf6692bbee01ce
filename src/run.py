"""Runs an experiment: compose -> check -> seed -> build -> fit -> summary.

`python -m src.run +experiment=tdpo_r_hps` · exit code 0 done, 1 failed in running, 2 bad input.
"""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import src.config  # noqa: F401  (registers the schema)
from src.errors import TrainingError, UserError

MENDABLE = (
    UserError,
    ValueError,
    OSError,
)  # what a component says of an option it cannot take, or a file it cannot read
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent.parent / "conf"), config_name="config")
def main(cfg: DictConfig) -> dict:
    with _one_sentence(enabled=HydraConfig.get().mode == RunMode.RUN):
        if cfg.task.value == "train_reward":  # torch and its friends; not needed to print help
            from src.reward_training import run_reward_training

            return run_reward_training(cfg)
        if cfg.task.value == "best_of_n":
            from src.best_of_n import run_best_of_n

            return run_best_of_n(cfg)
        from src.experiment import run_experiment

        return run_experiment(cfg)


@contextmanager
def _one_sentence(enabled: bool = True) -> Iterator[None]:
    """Turns the errors a user can mend into one sentence and an exit code. A sweep wants them as they are."""
    try:
        yield
    except (UserError, TrainingError, HydraException, OmegaConfBaseException) as error:
        told: BaseException = error
        if isinstance(error, InstantiationException) and error.__cause__ is not None:
            told = error.__cause__  # what the component's constructor said; Hydra only wraps it
        if not enabled or (isinstance(error, InstantiationException) and not isinstance(told, MENDABLE)):
            raise
        lines = [line.strip() for line in str(told).splitlines() if line.strip()]
        print(f"error: {' '.join(lines[:2]) or type(told).__name__}", file=sys.stderr)
        sys.exit(1 if isinstance(told, TrainingError) else 2)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print(f"error: {error}; free some space, then resume=last goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; resume=last goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(1)


def cli() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # composition errors come through, to be told in one sentence
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # says what we say, twice
    with _one_sentence():
        main()


if __name__ == "__main__":
    cli()
