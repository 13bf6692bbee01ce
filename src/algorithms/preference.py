"""What preference methods have in common: in each group the best sample is preferred to the worst."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from src.algorithms.base import Algorithm
from src.normalise import PromptNormaliser
from src.types import Credit


class Preference(Algorithm):
    """Base: one pair a group, by what samples are worth in all; none in a group whose best is as good as its worst."""

    needs_groups = True
    pairs = True  # whose two samples must lie on one rank

    def __init__(self, **schedule: Any):
        super().__init__(**schedule)
        self.group: Int[Tensor, " b"] | None = None  # of each sample of the rollout

    def normalise(
        self, rewards: Float[Tensor, " b"], prompts: Sequence[str], running: PromptNormaliser
    ) -> Float[Tensor, " b"]:
        places = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
        self.group = torch.tensor([places[prompt] for prompt in prompts])
        return running(rewards, prompts)

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        assert self.group is not None
        return Credit(returns, partners=best_and_worst(returns[:, 0], self.group).to(returns.device))


def best_and_worst(worth: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """For the best sample of each group (the first of several) the worst one; -1 for all others."""
    partners = torch.full((len(worth),), -1)
    for k in group.unique():
        members = (group == k).nonzero().flatten()
        own = worth.cpu()[members]
        if own.max() > own.min():
            partners[members[own.argmax()]] = members[own.argmin()]
    return partners
