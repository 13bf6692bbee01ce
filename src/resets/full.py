"""The whole critic starts afresh, output layer and optimizer included (Nikishin et al. 2022)."""

import torch

from src.critic.base import Head
from src.resets.base import Reset
from src.resets.ops import Mask, Scores, reinit_all


class FullReset(Reset):
    """Of the critic and its optimizer nothing is left, whatever threshold, outgoing and step_counter say.

    Of a LoRA (`where`) all ranks are reset, by those options.
    """

    takes_all = True

    def select(self, scores: Scores, generator: torch.Generator) -> Mask:
        return torch.ones_like(scores, dtype=torch.bool)

    def apply(
        self, head: Head, scores: list[Scores], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> list[Mask]:
        reinit_all(head, optimizer, generator)
        return [self.select(layer, generator) for layer in scores]
