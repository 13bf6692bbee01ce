"""The paper's critic: the reward's frozen image tower on decoded x_t, then an MLP (TDPO, section 4.1)."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.critic.base import Critic, in_float32
from src.errors import UserError
from src.normalise import standardise
from src.policy.diffusion import DiffusionPolicy
from src.ranks import Ranks
from src.rewards.base import RewardModel
from src.types import Rollout


class ImageTowerCritic(Critic):
    """Head on `reward.embed_images(decode(x_t))` (or of the predicted x_0), times the root of the embedding's width.

    Args:
        batch_size: states decoded and embedded at a time.
        precision: `bf16` decodes and embeds in bfloat16 (the head stays in float32, and so does a tower that also
            scores): half the time where the processor has such instructions, several times as much where it has not;
            `auto` asks it.
        scale_features: brings unit-length embeddings to components of about unit variance.
        stride: states of every stride-th step are embedded; a step in between goes by the state before it, which it
            knows too, so that V stays a function of the past alone and a valid baseline.
        score_input: whether the head also sees what the trained reward itself says of the picture, standardised within
            the prompt's samples at that step (`compared`): most of the return, where the picture is the predicted x_0.
            It scores every embedded state, which reward_queries does not count; it is there to tell what a critic could
            do if it knew.
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
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
        stride: int = 1,
        scale_features: bool = True,
        score_input: bool = False,
        initial: Literal["fan_in", "authors"] = "fan_in",
        initial_width: int | None = None,
    ):
        if stride < 1:
            raise UserError(f"critic.stride={stride} must be at least 1.")
        width = reward.embed_dim + score_input
        seen = (timestep_input, prompt_input, state, policy)
        super().__init__(width, hidden, dropout, activation, *seen, initial, initial_width)
        # the tower belongs to the reward, the decoder to the policy: kept out of this module's parameters
        self._embed, self._embed_and_score = reward.embed_images, reward.embed_and_score
        self._decode, self.batch_size = policy.decode, batch_size
        self.precision, self.stride = precision, stride
        self.score_input, self.score_column = score_input, reward.embed_dim
        self.scale = reward.embed_dim**0.5 if scale_features else 1.0

    @torch.no_grad()
    def features(self, rollout: Rollout) -> Float[Tensor, "b t d"]:
        num_steps = len(rollout.timesteps)
        states = self.states(rollout)[:, :: self.stride]
        prompts = [prompt for prompt in rollout.prompts for _ in range(states.shape[1])]
        rough = self.precision == "bf16" or (self.precision == "auto" and computes_in_bfloat16(states.device))
        embedded, scores = [], []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=rough):
                pictures = self._decode(states.flatten(0, 1)[part])
                if not self.score_input:
                    embedded.append(self._embed(pictures).float())
                    continue
            with in_float32(pictures):  # a reward has a precision of its own
                embeddings, own = self._embed_and_score(pictures.float(), prompts[part])
            embedded.append(embeddings)
            scores.append(own[:, None])
        # of unit length; brought to components of about unit variance, or a ReLU head learns nothing and dies
        parts = [torch.cat(embedded) * self.scale, *([torch.cat(scores)] if scores else [])]
        seen = torch.cat(parts, -1).unflatten(0, states.shape[:2])
        return self.in_context(seen.repeat_interleave(self.stride, 1)[:, :num_steps], rollout)

    def compared(self, features: Float[Tensor, "own t d"], prompts: Sequence[str], ranks: Ranks) -> Tensor:
        if not self.score_input:
            return features
        standard = within_prompts(ranks.gather(features[..., self.score_column]), prompts)
        features[..., self.score_column] = standard[ranks.part(len(prompts))]
        return features


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether there are instructions for it (x86 and CUDA are asked); without, it is emulated, slower than float32."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def within_prompts(scores: Float[Tensor, "b t"], prompts: Sequence[str]) -> Float[Tensor, "b t"]:
    """Standardised over the samples of each prompt, step by step; where a prompt has but one, over all samples."""
    standard = standardise(scores, (0,))
    for prompt, samples in Counter(prompts).items():
        if samples > 1:
            own = torch.tensor([other == prompt for other in prompts], device=scores.device)
            standard[own] = standardise(scores[own], (0,))
    return standard
