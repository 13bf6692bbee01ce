"""Weights & Biases through Lightning's logger: offline where there is no key, and never a prompt."""

import os
import secrets
from pathlib import Path
from typing import Any, Literal

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
    logger = WandbLogger(
        name=run_dir.name,
        save_dir=run_dir,
        project=project,
        group=group,
        tags=tags,
        mode=mode,
        id=id_file.read_text().strip(),
        resume="allow",
        settings=wandb.Settings(silent=True, console="off", init_timeout=20),
    )
    _set_axis(logger.experiment)
    return logger


def _has_key() -> bool:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    return wandb.login(prompt=False)  # looks for a key in the environment and in netrc; asks nobody


def _set_axis(run: Any) -> None:
    if hasattr(run, "define_metric"):
        run.define_metric("reward_queries")
        run.define_metric("*", step_metric="reward_queries")
