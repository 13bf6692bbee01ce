"""metrics.jsonl: one JSON object a row; rows of iterations, of evaluations and of the watch."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from src.files import read_rows, write_text


class JsonlLogger(Logger):
    """Appends each row as it comes; a kill loses at most the row being written."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return "0"

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The file."""
        return self.path

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run folder already holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            error.filename = str(self.path)  # which a full disk does not say
            raise

    @rank_zero_only
    def forget_after(self, iteration: int) -> list[dict[str, Any]]:
        """Drops the rows of iterations that a resumed run is about to repeat, and a row cut short by a kill.

        Returns the rows that are left.
        """
        if not self.path.exists():
            return []
        kept = [row for row in read_rows(self.path) if row.get("iteration", 0) <= iteration]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        return kept
