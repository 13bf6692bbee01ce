"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): flow matching, by a transformer.

It reads two CLIPs' states, and a T5's where there is one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from src.errors import UserError
from src.policy.flow import Flow
from src.policy.gaussian import Latents
from src.policy.pipelines.base import TOGETHER, Config, Pipeline
from src.policy.sampler import Times

T5_TOKENS = 256  # diffusers' default of max_sequence_length


class StableDiffusion3(Pipeline):
    """A T5 that is missing, or left out, is replaced by as many tokens of zeros, as in diffusers.

    Args:
        t5_tokens: of a prompt that the T5 reads, or zeros in its place; diffusers' max_sequence_length.
    """

    kind = StableDiffusion3Pipeline
    network_name = "transformer"
    texts = ("", "_2", "_3")
    optional = ("_3",)
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def __init__(self, parts: dict[str, Any], option: str, resolution: int | None = None, t5_tokens: int = T5_TOKENS):
        self.side_multiple = parts["transformer"].config.patch_size  # type: ignore[misc]
        super().__init__(parts, option, resolution)
        if not 0 <= t5_tokens <= 512:
            raise UserError(f"policy.t5_tokens={t5_tokens} lies outside 0 to 512.")
        self.t5_tokens = t5_tokens
        most = parts["transformer"].config.pos_embed_max_size * self.side_multiple
        if self.size > most:
            raise UserError(f"policy.resolution={resolution}: {option} draws at most {most * self.factor} pixels.")

    @classmethod
    def check(cls, configs: dict[str, Config], option: str) -> None:
        network, vae = configs["transformer"], configs["vae"]
        first, second = configs["text_encoder"], configs["text_encoder_2"]
        channels, latents = network.get("in_channels", 16), vae.get("latent_channels", 4)
        if channels != (network.get("out_channels") or channels):
            raise UserError(
                f"{option}: its transformer takes {channels} channels and gives {network['out_channels']}; the "
                "policy's takes what it gives: give a StableDiffusion3Pipeline."
            )
        if channels != latents:
            raise UserError(
                f"{option}: its transformer denoises {channels} channels and its VAE decodes {latents}; {TOGETHER}"
            )
        width, read = (
            first.get("hidden_size", 0) + second.get("hidden_size", 0),
            network.get("joint_attention_dim", 4096),
        )
        if width > read:
            raise UserError(
                f"{option}: its transformer reads text states of width {read}, and its text encoders give {width}; "
                f"{TOGETHER}"
            )
        third = configs.get("text_encoder_3")
        if third and third.get("d_model", read) != read:
            raise UserError(
                f"{option}: its transformer reads states of width {read}, and its T5 gives {third['d_model']}; "
                f"{TOGETHER}"
            )
        pooled = first.get("projection_dim", 512) + second.get("projection_dim", 512)
        if pooled != network.get("pooled_projection_dim", 2048):
            raise UserError(
                f"{option}: its transformer reads {network.get('pooled_projection_dim', 2048)} pooled numbers, and its "
                f"text encoders give {pooled}; {TOGETHER}"
            )
        for key in ("latents_mean", "latents_std"):
            if vae.get(key):
                raise UserError(f"{option}: its VAE moves its latents ({key}={vae[key]}); {TOGETHER}")
        if not vae.get("scaling_factor", 1):
            raise UserError(f"{option}: vae/config.json has no scaling_factor; {TOGETHER}")

    def sampler(self, num_steps: int, level: float, sde: str) -> Flow:
        return Flow(self.parts["scheduler"], num_steps, level, sde, self.option)  # type: ignore[arg-type]

    def encode(self, prompt: str, device: torch.device) -> tuple[Tensor, ...]:
        states, pooled = [], []
        for suffix in ("", "_2"):
            tokens = self.tokens(prompt, suffix, self.max_tokens, device)
            output = self.parts[f"text_encoder{suffix}"](tokens, output_hidden_states=True)
            states.append(output.hidden_states[-2][0].float())
            pooled.append(output[0][0].float())
        clip = torch.cat(states, -1)
        clip = F.pad(clip, (0, self.text_width - clip.shape[-1]))
        return torch.cat([clip, self._t5(prompt, clip)]), torch.cat(pooled)

    def _t5(self, prompt: str, like: Tensor) -> Tensor:
        if self.parts.get("text_encoder_3") is None:
            return like.new_zeros(self.t5_tokens, self.text_width)
        tokens = self.tokens(prompt, "_3", self.t5_tokens, like.device)
        return self.parts["text_encoder_3"](tokens)[0][0].float()

    @property
    def text_width(self) -> int:
        return self.parts["transformer"].config.joint_attention_dim

    def forward(self, network: nn.Module, x_t: Latents, t: Times, told: Sequence[Tensor]) -> Latents:
        states, pooled = told
        return network(x_t, states, pooled, t, return_dict=False)[0]
