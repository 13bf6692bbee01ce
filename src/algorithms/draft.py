"""DRaFT-K and DRaFT-LV (Clark et al. 2024, arXiv 2309.17400): the reward's gradient through the last K denoising steps.

DRaFT-K (section 3.2) cuts the gradient before the last K steps; K = 1 works. DRaFT-LV (section 3.3, K = 1) noises x_0
anew, to the level of the last step, `renoised` times, and averages the gradients of these last steps with that of the
first: less variance for no more sampling. With a distance from the base's prediction it is DRaFT+ (NeMo):
regulariser=kl_loss.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Step
from src.algorithms.through_reward import ThroughReward
from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.seeding import LOSS_STREAM, generator_of
from src.types import Rows, States


class DRaFT(ThroughReward):
    """L = -r(x_0), the gradient through the last `last_steps` steps.

    Args:
        last_steps: K.
        renoised: of LV; 0 for plain DRaFT-K, 2 in the paper.
    """

    def __init__(self, last_steps: int = 1, renoised: int = 0, **others: Any):
        super().__init__(**others)
        if last_steps < 1 or renoised < 0:
            raise UserError(f"algorithm: last_steps={last_steps} must be at least 1, renoised={renoised} at least 0.")
        if renoised and last_steps != 1:
            raise UserError(f"algorithm.renoised={renoised} is for one last step; choose algorithm.last_steps=1.")
        self.last_steps, self.renoised = last_steps, renoised
        self.gradients_a_sample *= 1 + renoised

    def denoise(self, rows: Rows, policy: DiffusionPolicy) -> tuple[Float[Tensor, "n c h w"], list[Step]]:
        last = min(self.last_steps, policy.num_steps)
        x_0, steps = self.rerun(rows, policy, policy.num_steps - last, [True] * last)
        pictures = [x_0, *(self._again(rows, policy, k) for k in range(self.renoised))]
        return torch.cat(pictures), steps

    def _again(self, rows: Rows, policy: DiffusionPolicy, k: int) -> Float[Tensor, "n c h w"]:
        """x_0 of the rollout, noised to the last step's level and denoised once more with a gradient."""
        shape, keys = (2, *rows.x_0[0].shape), (k, LOSS_STREAM)
        noise = torch.stack([torch.randn(shape, generator=generator_of(seed, *keys)) for seed in rows.seeds], 1)
        noise = noise.to(rows.x_0)
        t = policy.timesteps[-1].expand(len(rows))
        at = States(policy.noised(rows.x_0, t, noise[0]), t, rows.conditioning)
        mean, std = policy.step_of(self.predict(policy, at), at.x_t, at.t)
        return mean + std * noise[1]
