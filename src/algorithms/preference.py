"""What preference methods have in common: in each group the best sample is preferred to the worst."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from src.algorithms.base import Algorithm
from src.normalise import PromptNormaliser
from src.types import Credit


class Preference(Algorithm):
    """Base: one pair a group, by what samples are worth in all; none in a group whose best is as good as its worst.

    A group is what was drawn side by side: a prompt that comes again in an iteration has another one.
    """

    needs_groups, pairs, weighs_rows = True, True, False

    def __init__(self, **schedule: Any):
        super().__init__(**schedule)
        self.group: Int[Tensor, " b"] | None = None  # of each sample of the rollout

    def firsts(self, prompts: Sequence[str]) -> list[int]:
        if self.group_size is None:
            return super().firsts(prompts)
        return [k - k % self.group_size for k in range(len(prompts))]

    def normalise(
        self, rewards: Float[Tensor, " b"], prompts: Sequence[str], running: PromptNormaliser
    ) -> Float[Tensor, " b"]:
        self.group = torch.tensor(self.firsts(prompts))
        return running(rewards, prompts)

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        assert self.group is not None
        return Credit(returns, partners=best_and_worst(returns[:, 0], self.group).to(returns.device))


def best_and_worst(worth: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """For the best sample of each group the worst one; -1 for all others, and where all are as good."""
    order = np.lexsort((worth.cpu().numpy(), group.numpy()))  # by group, and within it from worst to best
    first = np.flatnonzero(np.diff(group.numpy()[order], prepend=-1))
    worst, best = (torch.from_numpy(order[ends]) for ends in (first, np.append(first[1:], len(order)) - 1))
    partners = torch.full((len(worth),), -1)
    partners[best] = torch.where(worth[best] > worth[worst], worst.to(worth.device), -1).cpu()
    return partners
