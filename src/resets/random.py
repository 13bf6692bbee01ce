"""Neurons drawn by lot start afresh: the control arm, equal in number, blind to activity."""

import torch

from src.resets.base import Reset
from src.resets.ops import Mask, Scores, top_share


class RandomReset(Reset):
    def select(self, scores: Scores, generator: torch.Generator) -> Mask:
        lots = torch.rand(scores.shape, generator=generator).to(scores)
        return top_share(lots, torch.ones_like(scores, dtype=torch.bool), self.ratio)
