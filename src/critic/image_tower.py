"""The paper's critic: the reward's frozen image tower on decoded x_t, then an MLP (TDPO, section 4.1)."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.critic.base import Critic
from src.rewards.base import RewardModel
from src.types import Rollout


class ImageTowerCritic(Critic):
    """Head on `reward.embed_images(decode(x_t))`.

    Args:
        batch_size: states decoded and embedded at a time.
    """

    def __init__(
        self,
        reward: RewardModel,
        decode: Callable[[Tensor], Tensor],
        hidden: list[int],
        dropout: float = 0.0,
        activation: Literal["relu", "none"] = "relu",
        timestep_input: bool = True,
        batch_size: int = 64,
    ):
        super().__init__(reward.embed_dim, hidden, dropout, activation, timestep_input)
        # the tower belongs to the reward, the decoder to the policy: kept out of this module's parameters
        self._embed, self._decode, self.batch_size = reward.embed_images, decode, batch_size

    @torch.no_grad()
    def features(self, rollout: Rollout) -> Float[Tensor, "b t d"]:
        states = rollout.latents[:, :-1]
        flat = states.flatten(0, 1)
        starts = range(0, len(flat), self.batch_size)
        parts = [self._embed(self._decode(flat[i : i + self.batch_size])) for i in starts]
        return self.with_time(torch.cat(parts).unflatten(0, states.shape[:2]), rollout.timesteps)
