"""TensorBoard through Lightning's logger: the keys of metrics.jsonl over reward queries, and the pictures.

Needs the extra `tensorboard`.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from src.errors import UserError
from src.loggers.tracker import Tracker

Row = dict[str, Any]


class TensorBoardTracker(TensorBoardLogger, Tracker):
    """Writes below RUN_DIR/tensorboard; a row is on disk once it is logged.

    Args:
        forget_after: reward queries after which TensorBoard shows nothing of earlier sessions: what a kill left beyond
            the checkpoint that the run goes on from.
    """

    def __init__(self, run_dir: Path, forget_after: int | None = None):
        purge = None if forget_after is None else forget_after + 1
        super().__init__(save_dir=run_dir, name=None, version="tensorboard", purge_step=purge)
        self.told = f"curves: tensorboard --logdir {shlex.quote(str(run_dir.parent))}"
        self._media: dict[str, Any] = {}

    def add_media(self, media: dict[str, Any]) -> None:
        self._media |= {key: value for key, value in media.items() if isinstance(value, wandb.Image)}  # no tables

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run folder already holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        media, self._media = self._media, {}
        queries = int(metrics["reward_queries"])
        for key, value in metrics.items():
            if isinstance(value, int | float):
                self.experiment.add_scalar(key, value, queries)
        for key, picture in media.items():
            self.experiment.add_image(key, np.asarray(picture.image), queries, dataformats="HWC")
        self.experiment.flush()

    @rank_zero_only
    def save(self) -> None:
        """The run folder already holds the configuration."""


def make_tensorboard_logger(
    run_dir: Path, config: dict[str, Any], resumed_at: int | None = None, rows: Sequence[Row] = (), **_: Any
) -> TensorBoardTracker:
    """A logger of a run that begins, or goes on after the last of `rows`.

    Raises UserError where TensorBoard is not installed.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            "logger=tensorboard needs TensorBoard: pip install 'overopt[tensorboard]', or choose logger=none."
        ) from error
    begun = (run_dir / "tensorboard").exists()
    last = max((int(row["reward_queries"]) for row in rows), default=-1)
    tracker = TensorBoardTracker(run_dir, last if begun else None)
    if not begun:
        tracker.experiment.add_text("config", f"<pre>{OmegaConf.to_yaml(OmegaConf.create(config))}</pre>", 0)
    return tracker
