"""A critic that needs no decoding: the latents themselves, average-pooled."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from src.critic.base import Critic
from src.policy.diffusion import DiffusionPolicy
from src.rewards.base import RewardModel
from src.types import Rollout


class LatentCritic(Critic):
    """Head on latents pooled to `grid` x `grid` cells.

    Args:
        grid: cells a side.
    """

    def __init__(
        self,
        reward: RewardModel,
        policy: DiffusionPolicy,
        hidden: list[int],
        dropout: float | list[float] = 0.0,
        activation: Literal["relu", "none"] = "relu",
        timestep_input: bool = True,
        prompt_input: bool = False,
        state: Literal["noisy", "predicted"] = "noisy",
        grid: int = 8,
        initial: Literal["fan_in", "authors"] = "fan_in",
        initial_width: int | None = None,
    ):
        features = policy.latent_shape[0] * grid**2
        seen = (timestep_input, prompt_input, state, policy)
        super().__init__(features, hidden, dropout, activation, *seen, initial, initial_width)
        self.grid = grid

    @torch.no_grad()
    def features(self, rollout: Rollout) -> Float[Tensor, "b t d"]:
        states = self.states(rollout)
        pooled = F.adaptive_avg_pool2d(states.flatten(0, 1), self.grid).flatten(1)
        return self.in_context(pooled.unflatten(0, states.shape[:2]), rollout)
