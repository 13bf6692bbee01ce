"""A run's life, whatever its task: the configuration it begins or goes on with, its folder, and its end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.config import check, run_name
from src.errors import UserError
from src.loggers.wandb import finish
from src.ranks import process_rank
from src.runs.folder import FOLDER_TOLD, HOW, find_run, held, new_run_dir, stored_config
from src.runs.launched import COUNTS, is_one_process
from src.runs.resuming import now_at
from src.runs.sweeps import in_sweep
from src.stopping import in_iterations, leave

POOL = "pool"  # folder of best-of-n's samples, while they are drawn


def new_run(composed: DictConfig, fallback_name: str) -> tuple[dict[str, Any], Path]:
    """The checked configuration of a run that begins, and the folder it will have; nothing is written yet."""
    cfg = check(composed)
    cfg["name"] = run_name(cfg["name"], HydraConfig.get().runtime.choices.get("experiment"), fallback_name)
    folder = folder_told(cfg) or new_run_dir(cfg)
    cfg["run_dir"] = str(folder)
    set_threads(cfg)
    return cfg, folder


def stored_run(composed: DictConfig) -> tuple[dict[str, Any], Path]:
    """The configuration of a run that goes on, and its folder. Raises UserError on one that cannot."""
    folder = find_run(composed.resume)
    if in_sweep():  # which has compared what makes the experiment; how it is run is for the command to say
        wanted: Any = OmegaConf.to_container(composed, resolve=True)
        stored = stored_config(folder, []) | {key: wanted[key] for key in HOW}
    else:
        stored = stored_config(folder, list(HydraConfig.get().overrides.task))
    cfg = check(DictConfig(stored))
    set_threads(cfg)
    return cfg, folder


def folder_told(cfg: dict[str, Any]) -> Path | None:
    """The run folder of a rank that did not choose it. Raises UserError if nobody told it."""
    if FOLDER_TOLD in os.environ:
        return Path(os.environ[FOLDER_TOLD])
    launched = any(int(os.environ.get(key, 1)) > 1 for key in COUNTS)
    if launched and not is_one_process(cfg["trainer"]) and not cfg["run_dir"]:
        raise UserError(
            "run_dir= is needed where torchrun or srun starts the processes: they must agree on the folder."
        )
    return Path(cfg["run_dir"]) if process_rank() else None


@contextmanager
def told_to_ranks(folder: Path) -> Iterator[None]:
    """Within, processes that Lightning starts are told which folder is the run's."""
    os.environ[FOLDER_TOLD] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER_TOLD]


def set_threads(cfg: dict[str, Any]) -> None:
    """Of torch, where the configuration says how many."""
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])


@contextmanager
def session(folder: Path, resumable: bool = True) -> Iterator[None]:
    """Keeps the folder for this process, ends W&B's run whatever happens, and removes the folder if none began."""
    first, stored = process_rank() == 0, (folder / "config.yaml").exists()
    with held(folder) if first else nullcontext():
        now_at(folder, resumable)
        exit_code, stopped = 1, False
        try:
            yield
            exit_code = 0
        except (Exception, KeyboardInterrupt) as error:
            stopped = isinstance(error, KeyboardInterrupt)
            if stopped:
                leave()
            if first and not stored and not any((folder / name).exists() for name in ("metrics.jsonl", POOL)):
                shutil.rmtree(folder, ignore_errors=True)  # the same command, or a mended one, can use it
            raise
        finally:
            finish(exit_code, in_a_hurry=stopped)  # a sweep's next run is a run of its own


def fit(trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
    """Trainer.fit; an interruption stays one, where Lightning makes an exit of it."""
    try:
        with in_iterations():
            trainer.fit(*args, **kwargs)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise exit_.__context__ from None
        raise
