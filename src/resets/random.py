"""Neurons drawn by lot start afresh: the control arm of `active`, as many neurons, blind to which are active."""

import torch

from src.resets.base import Reset
from src.resets.ops import Mask, Scores, share_of


class RandomReset(Reset):
    """Resets as many neurons as `active` would, at random: the control that asks whether the choice matters."""

    def select(self, scores: Scores, generator: torch.Generator) -> Mask:
        order = torch.randperm(len(scores), generator=generator).to(scores.device)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[order[: share_of(self.eligible_active(scores), self.ratio)]] = True
        return mask
