"""The run folder: found or made, never overwritten, and complete enough to repeat the run from."""

import datetime
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.errors import UserError

RUNS = Path("runs")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "lightning", "hydra-core", "wandb", "torchmetrics", "numpy")
MINIMUM_FREE_BYTES = 200 * 1024**2


def new_run_dir(cfg: dict[str, Any]) -> Path:
    """Makes the run folder. Raises UserError if the one asked for holds anything, or the disk is full."""
    if cfg["run_dir"]:
        folder = Path(cfg["run_dir"])
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"run_dir={folder} exists; name another, or go on with it by resume={folder}.")
    else:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = _unused(RUNS / f"{stamp}_{cfg['name']}_seed{cfg['seed']}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={folder} cannot be made: {error.strerror}.") from error
    free = shutil.disk_usage(folder).free
    if free < MINIMUM_FREE_BYTES:
        raise UserError(
            f"{folder} is on a disk with {free >> 20} MiB free; checkpoints need {MINIMUM_FREE_BYTES >> 20}."
        )
    return folder


def _unused(folder: Path) -> Path:
    """`folder`, or `folder-2`, ... : two jobs of a sweep may start in the same second."""
    candidate, k = folder, 1
    while candidate.exists():
        k += 1
        candidate = folder.with_name(f"{folder.name}-{k}")
    return candidate


def find_run(resume: str) -> Path:
    """The folder to resume: a path, or `last` for the newest under runs/. Raises UserError where there is none."""
    if resume == "last":
        started = sorted(RUNS.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
        if not started:
            raise UserError(f"resume=last: no run under {RUNS.resolve()}.")
        return started[-1].parent
    folder = Path(resume)
    if folder.name.endswith(".ckpt"):
        folder = folder.parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={resume}: no run there (config.yaml is missing).")
    return folder


def stored_config(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The configuration a run was started with, with the values that the command line sets anew."""
    stored = OmegaConf.load(folder / "config.yaml")
    values = [
        o for o in overrides if re.match(r"[a-z_]+(\.[a-z_]+)*=", o) and not o.startswith(("resume=", "run_dir="))
    ]
    values = [o for o in values if not OmegaConf.is_config(OmegaConf.select(stored, o.split("=")[0]))]  # group choices
    merged = OmegaConf.to_container(OmegaConf.merge(stored, OmegaConf.from_dotlist(values)))
    assert isinstance(merged, dict)
    return merged | {"run_dir": str(folder), "resume": str(folder)}  # type: ignore[return-value]


def write_config(folder: Path, cfg: dict[str, Any]) -> None:
    """config.yaml (resolved) and versions.json."""
    OmegaConf.save(OmegaConf.create(cfg), folder / "config.yaml")
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, str]:
    """Python, platform, packages and the git commit of the working tree."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), "commit": _commit()} | found


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
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
