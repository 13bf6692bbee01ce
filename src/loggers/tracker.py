"""What shows a run to people, beside metrics.jsonl: W&B, TensorBoard, or nothing."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger


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


def tell_where_to_look(loggers: Sequence[Logger]) -> None:
    """Prints how to see what each of them holds."""
    for logger in loggers:
        if isinstance(logger, Tracker) and logger.told:
            print(logger.told)
