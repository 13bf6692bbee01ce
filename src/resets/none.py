"""No reset: neurons are measured as under any other strategy, and left alone."""

from src.resets.base import Reset


class NoReset(Reset):
    needs_critic = False

    def due(self, iteration: int) -> bool:
        return False
