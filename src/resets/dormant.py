"""Dormant neurons start afresh, the most silent first (ReDo, Sokar et al. 2023)."""

import torch

from src.resets.base import Reset
from src.resets.ops import Mask, Scores, top_share


class DormantReset(Reset):
    """Resets the `ratio` share of the dormant neurons with the lowest scores (ReDo, Sokar et al. 2023).

    Without a threshold all neurons are eligible.
    """

    def select(self, scores: Scores, generator: torch.Generator) -> Mask:
        eligible = torch.ones_like(scores, dtype=torch.bool) if self.threshold is None else scores <= self.threshold
        return top_share(-scores, eligible, self.ratio)
