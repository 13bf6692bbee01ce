"""Active neurons start afresh, the most active first (TDPO-R, Zhang et al. 2024, section 4.2)."""

import torch

from src.resets.base import Reset
from src.resets.ops import Mask, Scores, top_share


class ActiveReset(Reset):
    """Resets the `ratio` share of the active neurons with the highest scores (TDPO-R, Zhang et al. 2024)."""

    def select(self, scores: Scores, generator: torch.Generator) -> Mask:
        return top_share(scores, self.eligible_active(scores), self.ratio)
