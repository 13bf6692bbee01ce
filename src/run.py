"""Runs an experiment: compose -> check -> seed -> build -> fit -> summary.

`python -m src.run +experiment=tdpo_r_hps` · exit code 0 done, 1 failed in running, 2 bad input.
Several at once (`-m`, or `+sweeps=NAME`) are the business of src/sweeps.py.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from omegaconf import DictConfig

import src.config  # noqa: F401  (registers the schema)
from src import sweeps
from src.errors import told_in_one_sentence
from src.run_folder import stored_task


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent.parent / "conf"), config_name="config")
def main(cfg: DictConfig) -> float | None:
    if sweeps.in_sweep():
        return sweeps.run_job(cfg, run)
    with _one_sentence():
        run(cfg)
    return None


def run(cfg: DictConfig) -> dict:
    task = stored_task(cfg.resume) if cfg.resume else cfg.task.value
    if task == "train_reward":  # torch and its friends; not needed to print help
        from src.reward_training import run_reward_training

        return run_reward_training(cfg)
    if task == "best_of_n":
        from src.best_of_n import run_best_of_n

        return run_best_of_n(cfg)
    from src.experiment import run_experiment

    return run_experiment(cfg)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What a user can mend, and an interruption, told in one sentence with an exit code."""
    try:
        with told_in_one_sentence():
            yield
    except KeyboardInterrupt:
        again = "the same command" if sweeps.begun() else "resume=last"
        print(f"stopped; {again} goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(1)


def cli() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # composition errors come through, to be told in one sentence
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # says what we say, twice
    with _one_sentence(), sweeps.summed_up():
        main()


if __name__ == "__main__":
    cli()
