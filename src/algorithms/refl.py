"""ReFL (Xu et al. 2023, arXiv 2304.05977, section 3): the reward's gradient through one predicted x_0.

A step among the last ones is drawn (30 to 39 of 40), the picture is the x_0 that the network predicts there, and the
loss is scale * relu(margin - r), r standardised: pictures that score `margin` or more are left alone. Of the public
code two slips are left out: it tells the network the step's number in place of its timestep, and takes x_0 by the
timestep before. There every micro-batch draws its step, here every optimizer step does; and their loss on pictures of a
data set, which would hold the policy back, is not here. A sample is one query: the score of the picture that it ends
in is logged and, but for the first iteration's, not used.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Step
from src.algorithms.through_reward import ThroughReward
from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.types import Rows, States


class ReFL(ThroughReward):
    """L = scale * relu(margin - r(predicted x_0)).

    Args:
        first: share of the trajectory before the earliest step that may be drawn; 0.75 in the paper.
        margin: standardised reward from which on a picture is good enough; null for no such.
        scale: of the loss.
    """

    def __init__(self, first: float = 0.75, margin: float | None = 2.0, scale: float = 1e-3, **others: Any):
        super().__init__(**others)
        if not 0 <= first < 1:
            raise UserError(f"algorithm.first={first} lies outside 0 to 1 (exclusive): it is a share of the steps.")
        self.first, self.margin, self.scale = first, margin, scale

    def denoise(self, rows: Rows, policy: DiffusionPolicy) -> tuple[Float[Tensor, "n c h w"], list[Step]]:
        earliest = min(int(self.first * policy.num_steps), policy.num_steps - 1)
        rng = torch.Generator().manual_seed(rows.draw)
        slot = int(torch.randint(earliest, policy.num_steps, (1,), generator=rng))
        x_t, t = rows.rollout.latents[rows.samples, slot], policy.timesteps[slot].expand(len(rows))
        at = States(x_t, t, rows.conditioning)
        output = self.predict(policy, at)
        return policy.predicted_clean(output, at.x_t, at.t), [Step(*policy.step_of(output, at.x_t, at.t), at)]

    def cost(self, rewards: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.scale * (-rewards if self.margin is None else (self.margin - rewards).relu())
