"""What shows a run to people, beside metrics.jsonl: W&B, TensorBoard, or nothing."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.loggers.logger import Logger as AnyLogger
from lightning.pytorch.loggers import Logger

from src.metrics.glossary import lookup
from src.types import Row


class Tracker(Logger):
    """A logger that also takes pictures, and tells where to look.

    Attributes:
        told: a line for the end of the run, if there is anything to do or to open.
    """

    told: str | None = None

    def add_media(self, media: dict[str, Any]) -> None:
        """Takes W&B's pictures and tables by key, which belong to the row that is logged next."""
        raise NotImplementedError


def no_tracker(**_: Any) -> None:
    """`logger=none`: metrics.jsonl and the report are all that a run leaves."""


def log_row(loggers: Sequence[AnyLogger], kind: str, row: Row, step: int) -> None:
    """Sends a row to every logger. Raises KeyError on a key that the glossary does not explain."""
    for key in row:
        lookup(key)
    for logger in loggers:
        logger.log_metrics({"kind": kind} | row, step=step)  # type: ignore[arg-type]  # ours take texts, too


def tell_where_to_look(loggers: Sequence[Logger]) -> None:
    """Prints how to see what each of them holds."""
    for logger in loggers:
        if isinstance(logger, Tracker) and logger.told:
            print(logger.told)
