"""A critic that needs no decoding: the latents themselves, average-pooled."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from src.critic.base import Critic
from src.rewards.base import RewardModel
from src.types import Rollout


class LatentCritic(Critic):
    """Head on x_t pooled to `grid` x `grid` cells."""

    def __init__(
        self,
        reward: RewardModel,
        decode: Callable[[Tensor], Tensor],
        hidden: list[int],
        dropout: float = 0.0,
        activation: Literal["relu", "none"] = "relu",
        timestep_input: bool = True,
        grid: int = 8,
        channels: int = 4,
    ):
        super().__init__(channels * grid**2, hidden, dropout, activation, timestep_input)
        self.grid = grid

    @torch.no_grad()
    def features(self, rollout: Rollout) -> Float[Tensor, "b t d"]:
        states = rollout.latents[:, :-1]
        pooled = F.adaptive_avg_pool2d(states.flatten(0, 1), self.grid).flatten(1)
        return self.with_time(pooled.unflatten(0, states.shape[:2]), rollout.timesteps)
