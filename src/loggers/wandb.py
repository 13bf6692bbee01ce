"""Weights & Biases through Lightning's logger: offline where there is no key, and never a prompt."""

import netrc
import os
import secrets
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger


def make_wandb_logger(
    run_dir: Path, project: str, mode: Literal["auto", "online", "offline", "disabled"], group: str, tags: list[str]
) -> WandbLogger:
    """A logger whose x-axis is `reward_queries`. A resumed run goes on under the same W&B id.

    Args:
        mode: `auto` is online with an API key at hand, else offline.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    id_file = run_dir / "wandb_id.txt"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    run = wandb.init(
        name=run_dir.name,
        dir=run_dir,
        project=project,
        group=group,
        tags=tags,
        mode=mode,
        id=id_file.read_text().strip(),
        resume="allow",
        settings=wandb.Settings(silent=True, console="off", init_timeout=20),
    )
    logger = WandbLogger(experiment=run)
    _set_axis(logger.experiment)
    return logger


def _has_key() -> bool:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _set_axis(run: wandb.Run) -> None:
    run.define_metric("reward_queries")
    run.define_metric("*", step_metric="reward_queries")
