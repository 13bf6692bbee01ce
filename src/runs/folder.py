"""The run folder: found or made, never overwritten, and complete enough to repeat the run from."""

import datetime
import fcntl
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config import default_values, needed_keys
from src.errors import UserError
from src.files import expanded, make_folder, read_object, reason, user_path, write_json, write_text
from src.overrides import written

RUNS = Path("runs")
FOLDER_TOLD = "OVEROPT_RUN_DIR"  # in the environment of ranks beyond the first
LOCK = ".lock"  # held by the process that runs in the folder
HOW = ("threads", "logger", "checkpoint_every")  # keys that say how a run is run, and not what it is
RESUMABLE = ("iterations=", "checkpoint_every=", "threads=", "logger.", "evaluation.every=")
SHOWN = ("suite", "train_reward", "iterations")  # keys of a stored configuration that reports cannot do without
ANEW = "start anew elsewhere"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "lightning", "hydra-core", "wandb", "torchmetrics", "numpy")
SPARE_BYTES = 50 * 1024**2  # for pictures, metrics and W&B, beside a checkpoint and the next one being written


def new_run_dir(cfg: dict[str, Any]) -> Path:
    """A path for the run that nothing lies at yet. Raises UserError if the one asked for holds anything."""
    if cfg["run_dir"] is None:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        return _unused(RUNS / f"{stamp}_{cfg['name']}_seed{cfg['seed']}")
    if not cfg["run_dir"]:
        raise UserError("run_dir= is empty: name a folder, or leave it out for a dated one under runs/.")
    folder = Path(cfg["run_dir"])
    try:
        taken = folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()))
    except OSError as error:
        raise _cannot_be_used(folder, error) from error
    if taken:
        resumable = f", or go on with it by {written('resume', str(folder))}" if cfg["task"] != "train_reward" else ""
        raise UserError(f"run_dir={folder} exists; name another{resumable}.")
    return folder


def open_run_dir(folder: Path, cfg: dict[str, Any], checkpoint_bytes: int) -> None:
    """Writes the configuration. Raises UserError where there is no room for checkpoints."""
    # two checkpoints while one is replaced; and the weights three times, best/ being replaced likewise
    free, needed = shutil.disk_usage(folder).free, 3 * checkpoint_bytes + SPARE_BYTES
    if free < needed:
        raise UserError(
            f"{folder} is on a disk with {free >> 20} MiB free; this run needs {needed >> 20} MiB: "
            "make room, or choose another run_dir=."
        )
    write_config(folder, cfg)


def _unused(folder: Path) -> Path:
    """`folder`, or `folder-2`, ..., made at once: two runs may start in the same second."""
    make_folder(folder.parent)
    candidate, k = folder, 1
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            k += 1
            candidate = folder.with_name(f"{folder.name}-{k}")
        except OSError as error:
            raise _cannot_be_used(candidate, error) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps it for this process as long as the context lasts.

    Raises UserError where it cannot be made, and where another process runs in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("wb")
    except OSError as error:
        raise _cannot_be_used(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is running there; wait for it, or stop it.") from error
        except OSError:
            pass  # a file system that has no locks
        yield


def _cannot_be_used(folder: Path, error: OSError) -> UserError:
    return UserError(f"run_dir={folder} cannot be used: {reason(folder, error)}.")


def find_run(resume: str) -> Path:
    """The folder to resume: a path, or `last` for the newest under runs/. Raises UserError where there is none.

    Ranks beyond the first are told which it is.
    """
    resume = os.environ.get(FOLDER_TOLD, resume)
    if resume == "last":
        started = sorted(RUNS.glob("*/config.yaml"), key=_changed)
        if not started:
            raise UserError(f"resume=last: no run under {RUNS.resolve()}; name a run by resume=FOLDER.")
        return started[-1].parent
    folder = user_path(resume)
    if folder.name == "last.ckpt":
        folder = folder.parent.parent
    try:
        there = (folder / "config.yaml").is_file()
    except OSError as error:
        raise UserError(f"resume={resume} cannot be read: {reason(folder, error)}.") from error
    if not there:
        raise UserError(f"resume={resume}: no run there (config.yaml is missing); name a run folder, or last.")
    return folder


def _changed(path: Path) -> int:
    """When a file was written last, in ns; 0 if it has gone since it was found."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def stored_task(resume: str) -> str:
    """What the run to resume does, for whoever has to choose who goes on with it."""
    return read_config(find_run(resume)).get("task", "finetune")


def read_config(folder: Path, needed: Collection[str] = SHOWN, instead: str = ANEW) -> dict[str, Any]:
    """The configuration that a run was started with. Raises UserError, with what to do, where it cannot be read.

    Args:
        folder: of the run.
        needed: keys that it has to have; a run that goes on needs more of them than one that is shown.
        instead: what else can be done.
    """
    path = folder / "config.yaml"
    try:
        stored: Any = OmegaConf.to_container(OmegaConf.load(path))
        fault = _lacks(stored, needed) if path.stat().st_size else "it is empty"
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        fault = " ".join(str(error).split())
    if fault:
        raise UserError(
            f"{path} cannot be read ({fault}): put the config.yaml of a run of the same command in its place, or "
            f"{instead}{weights_in(folder)}."
        )
    return expanded(stored)


def _lacks(stored: Any, needed: Collection[str]) -> str:
    """What a stored configuration lacks; empty where it is whole."""
    suite = stored.get("suite") if isinstance(stored, dict) else None
    if not isinstance(suite, dict) or not isinstance(suite.get("rewards"), dict):
        return "it is no configuration of a run"
    missing = [key for key in needed if key not in stored]
    return f"it has no {missing[0]}" if missing else ""


def weights_in(folder: Path) -> str:
    """What a message says of the weights that a run folder still holds, if there are any."""
    kept = [name for name in ("best", "unet", "transformer", "lora", "ema") if (folder / name).is_dir()]
    return f"; weights are in {' and '.join(str(folder / name) for name in kept)}" if kept else ""


def stored_config(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The configuration a run was started with, with the values that the command line sets anew.

    Raises UserError on one that would make it another run.
    """
    stored = OmegaConf.create(read_config(folder, needed_keys()))
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
        before = read_object(path, "remove it, and the run goes on")
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
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True).stdout.decode().strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, check=True
        ).stdout.strip()
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
