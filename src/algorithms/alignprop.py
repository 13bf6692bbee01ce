"""AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): the reward's gradient through the sampler, cut at random.

Cutting the gradient at a random step (section 4.1) keeps the early steps in play without the cost, and the instability,
of the whole chain. Three ways of cutting are in use: the later public code draws one cut for a batch from N(42, 5) of
50 steps (`normal`); others draw it uniformly (`uniform`); the first public code and TRL draw anew at every step, so
that step i of T keeps its gradient with probability (i + 1) / (T + 1), whatever the others do (`each_step`). There a
draw is of a micro-batch, here of an optimizer step; and their gradients stay below the clip (a loss times 0.01), so
that large ones count for more, where here all of them reach it (`max_grad_norm=100` is as there).
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Step
from src.algorithms.through_reward import ThroughReward
from src.policy.diffusion import DiffusionPolicy
from src.types import Rows

MEAN, SPREAD = 0.84, 0.1  # of the cut, as shares of the steps: 42 and 5 of 50


class AlignProp(ThroughReward):
    """L = -r(x_0), the gradient through the steps that the draw keeps; one draw for all rows of an optimizer step."""

    def __init__(self, truncation: Literal["normal", "uniform", "each_step"] = "normal", **others: Any):
        super().__init__(**others)
        self.truncation = truncation

    def denoise(self, rows: Rows, policy: DiffusionPolicy) -> tuple[Float[Tensor, "n c h w"], list[Step]]:
        kept = self.kept(policy.num_steps, rows.draw)
        first = kept.index(True)
        return self.rerun(rows, policy, first, kept[first:])

    def kept(self, num_steps: int, draw: int) -> list[bool]:
        """Which steps keep their gradient; the last one always does."""
        rng = torch.Generator().manual_seed(draw)
        if self.truncation == "each_step":
            cuts = torch.randint(0, num_steps + 1, (num_steps,), generator=rng)
        elif self.truncation == "uniform":
            cuts = torch.randint(0, num_steps, (1,), generator=rng).expand(num_steps)
        else:
            cut = 0
            while not 1 <= cut < num_steps and num_steps > 1:
                cut = int(num_steps * (MEAN + SPREAD * torch.randn((), generator=rng).item()))
            cuts = torch.tensor(cut).expand(num_steps)
        return [k >= cut or k == num_steps - 1 for k, cut in enumerate(cuts.tolist())]
