"""The paper's critic: the reward's frozen image tower on decoded x_t, then an MLP (TDPO, section 4.1)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.critic.base import Critic
from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.rewards.base import RewardModel
from src.types import Rollout


class ImageTowerCritic(Critic):
    """Head on `reward.embed_images(decode(x_t))` (or of the predicted x_0), times the root of the embedding's width.

    Args:
        batch_size: states decoded and embedded at a time.
        precision: `bf16` decodes and embeds in bfloat16 (the head stays in float32): half the time where the processor
            has such instructions.
        scale_features: brings unit-length embeddings to components of about unit variance.
        stride: states of every stride-th step are embedded; a step in between goes by the state before it, which it
            knows too, so that V stays a function of the past alone and a valid baseline.
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
        batch_size: int = 64,
        precision: Literal["fp32", "bf16"] = "fp32",
        stride: int = 1,
        scale_features: bool = True,
    ):
        if stride < 1:
            raise UserError(f"critic.stride={stride} must be at least 1.")
        super().__init__(reward.embed_dim, hidden, dropout, activation, timestep_input, prompt_input, state, policy)
        # the tower belongs to the reward, the decoder to the policy: kept out of this module's parameters
        self._embed, self._decode, self.batch_size = reward.embed_images, policy.decode, batch_size
        self.precision, self.stride = precision, stride
        self.scale = reward.embed_dim**0.5 if scale_features else 1.0

    @torch.no_grad()
    def features(self, rollout: Rollout) -> Float[Tensor, "b t d"]:
        num_steps = len(rollout.timesteps)
        states = self.states(rollout)[:, :: self.stride]
        flat = states.flatten(0, 1)
        with torch.autocast(flat.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            starts = range(0, len(flat), self.batch_size)
            parts = [self._embed(self._decode(flat[i : i + self.batch_size])) for i in starts]
        # of unit length; brought to components of about unit variance, or a ReLU head learns nothing and dies
        embedded = torch.cat(parts).float().unflatten(0, states.shape[:2]) * self.scale
        return self.in_context(embedded.repeat_interleave(self.stride, 1)[:, :num_steps], rollout)
