"""DDPO (Black et al. 2024, arXiv 2305.13301): denoising as a bandit with one reward at its end.

Every step of a trajectory gets the same credit, the per-prompt normalised reward (section 4.1), and the importance-
sampled estimator is PPO-clipped (section 4.3, DDPO_IS). The policy is updated on whole trajectories.
"""

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Algorithm, Loss, clipped_surrogate, step_and_log_prob
from src.policy.diffusion import DiffusionPolicy
from src.types import Credit, Rows


class DDPO(Algorithm):
    """A_t = clip(return of step t, +-advantage_clip).

    Args:
        clip_range: of the ratio pi_theta / pi_old.
        advantage_clip: of the advantages, in standard deviations.
    """

    policy_gradient = True

    def __init__(self, clip_range: float, advantage_clip: float, **schedule: Any):
        super().__init__(**schedule)
        self.clip_range, self.advantage_clip = clip_range, advantage_clip

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        return Credit(returns.clamp(-self.advantage_clip, self.advantage_clip) * self.weights(step_std))

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        step, log_prob = step_and_log_prob(rows, policy)
        loss = clipped_surrogate(log_prob - rows.old_log_prob, rows.advantage, self.clip_range)
        return replace(loss, steps=[step])
