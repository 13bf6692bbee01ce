"""Weights & Biases through Lightning's logger: offline where there is no key, and never a prompt."""

import netrc
import os
import secrets
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb
import wandb.errors
from lightning.pytorch.loggers import WandbLogger

from src.errors import UserError
from src.runs.folder import write_text

INIT_TIMEOUT = 20  # s that the beginning waits, where W&B's own variable does not say otherwise
FINISH_TIMEOUT = 120  # s that the end of a run waits for a server; what is left lies in the run folder for `wandb sync`


def make_wandb_logger(
    run_dir: Path,
    project: str,
    mode: Literal["auto", "online", "offline", "disabled"],
    group: str,
    tags: list[str],
    config: dict[str, Any],
) -> WandbLogger:
    """A logger whose x-axis is `reward_queries`. A resumed run goes on under the same W&B id.

    Args:
        mode: `auto` is what WANDB_MODE says, else online with an API key at hand, else offline.

    Raises UserError if `online` is asked for, here or there, without a key: nobody is at the keyboard to type one.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")  # type: ignore[assignment]
        asked = f"WANDB_MODE={mode}"
    else:
        asked = f"logger.mode={mode}"
    if mode == "online" and not has_key():
        raise UserError(f"{asked} needs a key: set WANDB_API_KEY or run `wandb login`, or have it offline.")
    id_file = run_dir / "wandb_id.txt"
    if not id_file.exists():
        write_text(id_file, secrets.token_hex(4))
    wait = float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT))
    options: dict[str, Any] = {
        "name": run_dir.name,
        "dir": run_dir,
        "project": project,
        "group": group,
        "tags": tags,
        "config": config,
        "id": id_file.read_text(encoding="utf-8").strip(),
        "resume": "allow",
        "settings": wandb.Settings(silent=True, console="off", init_timeout=wait, finish_timeout=FINISH_TIMEOUT),
    }
    try:
        run = wandb.init(mode=mode, **options)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
        print(f"W&B cannot be reached ({str(error).splitlines()[0]}); logging offline, `wandb sync` uploads it later.")
        wandb.teardown()  # the failed attempt still holds the id
        run = wandb.init(mode="offline", **options)
    logger = WandbLogger(experiment=run)
    _set_axis(logger.experiment)
    return logger


def has_key() -> bool:
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
    for measured in ("eval/*", "held_out/*"):  # a run's table shows where each curve ended, and its extremes
        run.define_metric(measured, step_metric="reward_queries", summary="min,max,last")
