"""The run folder: found or made, never overwritten, and complete enough to repeat the run from."""

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.config import default_values
from src.errors import UserError

RUNS = Path("runs")
FOLDER_TOLD = "OVEROPT_RUN_DIR"  # in the environment of ranks beyond the first
LOCK = ".lock"  # held by the process that runs in the folder
HOW = ("threads", "logger", "checkpoint_every")  # keys that say how a run is run, and not what it is
RESUMABLE = ("iterations=", "checkpoint_every=", "threads=", "logger.", "evaluation.every=")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "lightning", "hydra-core", "wandb", "torchmetrics", "numpy")
SPARE_BYTES = 50 * 1024**2  # for pictures, metrics and W&B, beside a checkpoint and the next one being written


def new_run_dir(cfg: dict[str, Any]) -> Path:
    """A path for the run that nothing lies at yet. Raises UserError if the one asked for holds anything."""
    if not cfg["run_dir"]:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        return _unused(RUNS / f"{stamp}_{cfg['name']}_seed{cfg['seed']}")
    folder = Path(cfg["run_dir"])
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        resumable = f", or go on with it by resume={folder}" if cfg["task"] != "train_reward" else ""
        raise UserError(f"run_dir={folder} exists; name another{resumable}.")
    return folder


def open_run_dir(folder: Path, cfg: dict[str, Any], checkpoint_bytes: int) -> None:
    """Writes the configuration. Raises UserError where there is no room for checkpoints."""
    # two checkpoints while one is replaced; and the weights three times, best/ being replaced likewise
    free, needed = shutil.disk_usage(folder).free, 3 * checkpoint_bytes + SPARE_BYTES
    if free < needed:
        raise UserError(f"{folder} is on a disk with {free >> 20} MiB free; this run needs {needed >> 20} MiB.")
    write_config(folder, cfg)


def _unused(folder: Path) -> Path:
    """`folder`, or `folder-2`, ..., made at once: two runs may start in the same second."""
    candidate, k = folder, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            k += 1
            candidate = folder.with_name(f"{folder.name}-{k}")
        except OSError as error:
            raise _cannot_be_made(candidate, error) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps it for this process as long as the context lasts.

    Raises UserError where it cannot be made, and where another process runs in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise _cannot_be_made(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is running there; wait for it, or stop it.") from error
        except OSError:
            pass  # a file system that has no locks
        yield


def _cannot_be_made(folder: Path, error: OSError) -> UserError:
    return UserError(f"run_dir={folder} cannot be made: {error.strerror}.")


def find_run(resume: str) -> Path:
    """The folder to resume: a path, or `last` for the newest under runs/. Raises UserError where there is none.

    Ranks beyond the first are told which it is.
    """
    resume = os.environ.get(FOLDER_TOLD, resume)
    if resume == "last":
        started = sorted(RUNS.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
        if not started:
            raise UserError(f"resume=last: no run under {RUNS.resolve()}.")
        return started[-1].parent
    folder = Path(resume)
    if folder.name == "last.ckpt":
        folder = folder.parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={resume}: no run there (config.yaml is missing).")
    return folder


def stored_task(resume: str) -> str:
    """What the run to resume does, for whoever has to choose who goes on with it."""
    stored: Any = OmegaConf.load(find_run(resume) / "config.yaml")
    return stored.get("task", "finetune")


def stored_config(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The configuration a run was started with, with the values that the command line sets anew.

    Raises UserError on one that would make it another run.
    """
    stored = OmegaConf.load(folder / "config.yaml")
    values = [o for o in overrides if not o.startswith("resume=")]
    for override in values:
        if not override.startswith(RESUMABLE):
            raise UserError(
                f"{override} cannot be changed on resume, only {' '.join(RESUMABLE)}: "
                "the run keeps the configuration it was started with."
            )
    merged: Any = OmegaConf.to_container(OmegaConf.merge(stored, OmegaConf.from_dotlist(values)))
    return default_values() | merged | {"run_dir": str(folder)}  # keys that the run's version did not know yet


def write_config(folder: Path, cfg: dict[str, Any]) -> None:
    """config.yaml (resolved) and versions.json, each whole or not at all; the latter also tells what went before it."""
    path, now = folder / "versions.json", versions()
    if path.exists():  # the run goes on
        before = json.loads(path.read_text())
        now["earlier_commits"] = [*before.get("earlier_commits", []), before["commit"]]
    write_json(path, now)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cfg)))


def versions() -> dict[str, Any]:
    """Python, platform, the processor's instructions that torch uses, packages, the git commit of the working tree."""
    import torch  # takes seconds; whoever asks has loaded it

    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    here = {"python": platform.python_version(), "platform": platform.platform()}
    return here | {"cpu": torch.backends.cpu.get_cpu_capability(), "commit": _commit()} | found


def _commit() -> str:
    try:
        here = Path(__file__).parent
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return commit + ("+changes" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content)
    temporary.replace(path)
