"""Stable Diffusion 1.x and 2.x: a UNet that reads the last states of one text encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from src.errors import UserError
from src.policy.ddim import DDIM
from src.policy.gaussian import Latents
from src.policy.pipelines.base import TOGETHER, Config, Pipeline
from src.policy.sampler import Times

WANTED = "a StableDiffusionPipeline, such as CompVis/stable-diffusion-v1-4"


class StableDiffusion(Pipeline):
    """Stable Diffusion 1 and 2 (Rombach et al. 2022): a UNet that reads one CLIP's token states, and DDIM."""

    kind = StableDiffusionPipeline

    @classmethod
    def check(cls, configs: dict[str, Config], option: str) -> None:
        check_unet(configs["unet"], option)
        check_fit(configs["unet"], configs["vae"], configs["text_encoder"].get("hidden_size"), option)

    def sampler(self, num_steps: int, level: float, sde: str) -> DDIM:
        return DDIM(self.parts["scheduler"], num_steps, level, self.option)

    def encode(self, prompt: str, device: torch.device) -> tuple[Tensor, ...]:
        tokens = self.tokens(prompt, "", self.max_tokens, device)
        return (self.parts["text_encoder"](tokens)[0][0].float(),)

    @property
    def text_width(self) -> int:
        return text_width(self.parts["unet"])

    def forward(self, network: nn.Module, x_t: Latents, t: Times, told: Sequence[Tensor]) -> Latents:
        return network(x_t, t, told[0], return_dict=False)[0]


def text_width(unet: Any) -> int:
    """Width of the token states that a UNet attends to, its own projection of them included."""
    read = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    return read if isinstance(read, int) else read[0]


def check_unet(unet: Config, option: str, added: str | None = None) -> None:
    """Raises UserError on a denoiser of more than a latent, a timestep, text states and what `added` names."""
    channels, size = (unet.get("in_channels", 4), unet.get("out_channels", 4)), unet.get("sample_size")
    wants = {
        "addition_embed_type": "pooled text states and picture sizes with every forward, as Stable Diffusion XL's",
        "class_embed_type": "class labels",
        "num_class_embeds": "class labels",
        "time_cond_proj_dim": "the guidance scale as an embedding, as a latent consistency model",
    }
    for key, what in wants.items():
        if unet.get(key) and not (key == "addition_embed_type" and unet[key] == added):
            raise UserError(f"{option}: its UNet wants {what} ({key}={unet[key]}); give {WANTED}.")
    if unet.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise UserError(
            f"{option}: its UNet wants states of pictures (encoder_hid_dim_type={unet['encoder_hid_dim_type']}); "
            f"give {WANTED}."
        )
    if channels[0] != channels[1]:
        more = {9: " (inpainting: a mask and a masked picture too)", 8: " (a picture to edit too)", 5: " (depth too)"}
        raise UserError(
            f"{option}: its UNet takes {channels[0]} channels and gives {channels[1]}{more.get(channels[0], '')}; "
            f"the policy's takes what it gives: give {WANTED}."
        )
    if not isinstance(size, int):
        what = f"latents of {size}, which are not square" if size else "latents of a size that it does not tell"
        raise UserError(f"{option}: its UNet takes {what} (sample_size in unet/config.json); give a number.")


def check_fit(unet: Config, vae: Config, width: int | None, option: str) -> None:
    """Raises UserError where text encoders (of this width together), UNet and decoder are not made for each other."""
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        raise UserError(f"{option}: its UNet denoises {channels} channels and its VAE decodes {latents}; {TOGETHER}")
    read = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)
    if width is not None and any(each != width for each in (read if isinstance(read, list) else [read])):
        raise UserError(
            f"{option}: its UNet reads text states of width {read}, and its text encoder gives {width}; {TOGETHER}"
        )
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(key):
            raise UserError(
                f"{option}: its VAE moves its latents ({key}={vae[key]}), which no StableDiffusionPipeline takes back; "
                f"{TOGETHER}"
            )
    if not vae.get("scaling_factor", 1):
        raise UserError(f"{option}: vae/config.json has no scaling_factor; {TOGETHER}")
