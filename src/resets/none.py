"""No reset: neurons are measured as under any other strategy, and left alone."""

from src.resets.base import Reset
from src.types import Metrics


class NoReset(Reset):
    """Resets nothing; neurons are measured all the same."""

    selects = False

    def due(self, iteration: int, metrics: Metrics) -> bool:
        return False
