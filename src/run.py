"""Runs an experiment: compose -> check -> seed -> build -> fit -> summary.

`python -m src.run +experiment=tdpo_r_hps` · exit code 0 done, 1 failed in running, 2 bad input, 128 + n stopped by
signal n (130 Ctrl-C, 143 SIGTERM).
Several at once (`-m`, or `+sweeps=NAME`) are the business of src/runs/sweeps.py.
"""

from src import stopping

if __name__ == "__main__":
    stopping.listen()  # before the seconds that the imports take

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from omegaconf import DictConfig

import src.config  # noqa: F401  (registers the schema)
from src import composing
from src.errors import UserError, told_in_one_sentence
from src.overrides import fault_in, understood
from src.runs import sweeps
from src.runs.folder import stored_task
from src.runs.launched import check_environment, stored_trainer
from src.runs.resuming import how_to_go_on
from src.screen import survive_its_end

ROOT = Path(__file__).resolve().parents[1]


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent.parent / "conf"), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """A run of its own, or a job of a sweep; returns the latter's objective."""
    if sweeps.in_sweep():
        return sweeps.run_job(cfg, run)
    with _one_sentence():
        run(cfg)
    return None


def run(cfg: DictConfig) -> dict:
    """Does the task: src/tasks/TASK.py, imported here because torch and its friends are not needed to print help."""
    task = stored_task(cfg.resume) if cfg.resume is not None else cfg.task.value
    check_environment(
        stored_trainer(cfg.resume) if cfg.resume is not None else cfg.trainer
    )  # before Lightning reads it
    module = importlib.import_module(f"src.tasks.{task}")
    stopping.begun()
    return module.run(cfg)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What a user can mend, and an interruption, told in one sentence with an exit code."""
    try:
        with told_in_one_sentence():
            yield
    except KeyboardInterrupt as interruption:
        stopping.leave()
        stopped = stopping.stopped_by(interruption)
        print(f"stopped by {stopped}; {how_to_go_on()}.", file=sys.stderr)
        sys.exit(stopped.exit_code)


def cli() -> None:
    """The whole command, with its faults told in one sentence and its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # composition errors come through, to be told in one sentence
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # says what we say, twice
    survive_its_end()
    with _one_sentence(), sweeps.summed_up():
        _look_at_the_command()
        with composing.told(sys.argv[1:]):
            main()


def _look_at_the_command() -> None:
    """Raises UserError on what Hydra would take for something else, or not take at all."""
    if Path.cwd().resolve() != ROOT:
        raise UserError(f"run it from the project's root, which the configuration's paths start from: cd {ROOT}")
    if fault := fault_in(sys.argv[1:]):
        raise UserError(fault)
    sys.argv[1:] = understood(sys.argv[1:])


if __name__ == "__main__":
    cli()
