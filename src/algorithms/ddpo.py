"""DDPO (Black et al. 2024, arXiv 2305.13301): denoising as a bandit with one reward at its end.

Every step of a trajectory gets the same credit, the per-prompt normalised reward (section 4.1), and the importance-
sampled estimator is PPO-clipped (section 4.3, DDPO_IS). The policy is updated on whole trajectories.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Algorithm, PolicyLoss, Rows, clipped_surrogate
from src.types import Credit


class DDPO(Algorithm):
    """A_t = clip(normalised reward, +-advantage_clip) for all t."""

    def __init__(
        self,
        clip_range: float,
        advantage_clip: float,
        schedule: Literal["timestep", "trajectory"] = "trajectory",
        samples_per_update: int | None = None,
        inner_epochs: int = 1,
        timestep_weighting: Literal["uniform", "variance"] = "uniform",
        timestep_fraction: float = 1.0,
        shuffle_timesteps: bool = False,
    ):
        super().__init__(
            schedule, samples_per_update, inner_epochs, timestep_weighting, timestep_fraction, shuffle_timesteps
        )
        self.clip_range, self.advantage_clip = clip_range, advantage_clip

    def credit(
        self, rewards: Float[Tensor, " b"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        clipped = rewards.clamp(-self.advantage_clip, self.advantage_clip)
        return Credit(advantages=clipped[:, None] * self.weights(step_std))

    def policy_loss(self, log_prob: Rows, old_log_prob: Rows, advantage: Rows) -> PolicyLoss:
        return clipped_surrogate(log_prob, old_log_prob, advantage, self.clip_range)
