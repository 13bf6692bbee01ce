"""Stable Diffusion XL (Podell et al. 2023): a UNet that reads two text encoders, a pooled state and picture sizes."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from src.errors import UserError
from src.policy.ddim import DDIM
from src.policy.gaussian import Latents
from src.policy.pipelines.base import TOGETHER, Config, Pipeline
from src.policy.pipelines.sd import check_fit, check_unet, text_width
from src.policy.sampler import Times


class StableDiffusionXL(Pipeline):
    """An empty prompt, which guidance leads away from, has states of zeros where the pipeline says so, as base 1.0."""

    kind = StableDiffusionXLPipeline
    texts = ("", "_2")

    @classmethod
    def check(cls, configs: dict[str, Config], option: str) -> None:
        unet, first, second = (configs[part] for part in ("unet", "text_encoder", "text_encoder_2"))
        check_unet(unet, option, added="text_time")
        check_fit(unet, configs["vae"], first.get("hidden_size", 0) + second.get("hidden_size", 0), option)
        pooled, ids = second.get("projection_dim", 512), unet.get("addition_time_embed_dim") or 0
        if unet.get("addition_embed_type") != "text_time":
            raise UserError(f"{option}: its UNet takes no pooled text states and sizes; {TOGETHER}")
        given, taken = pooled + 6 * ids, unet.get("projection_class_embeddings_input_dim")
        if given != taken:
            what = "as many as a refiner's" if given - taken == ids else "others"
            raise UserError(
                f"{option}: its UNet takes {taken} numbers beside the text states, {what}, and its text encoder and "
                f"six sizes give {given}; {TOGETHER}"
            )

    @property
    def decodes_in_float32(self) -> bool:
        """Its own VAE overflows in half precision; one that does not says so."""
        return bool(self.parts["vae"].config.force_upcast)

    def sampler(self, num_steps: int, level: float, sde: str) -> DDIM:
        return DDIM(self.parts["scheduler"], num_steps, level, self.option)

    def encode(self, prompt: str, device: torch.device) -> tuple[Tensor, ...]:
        states = []
        for suffix in self.texts:
            tokens = self.tokens(prompt, suffix, self.max_tokens, device)
            output = self.parts[f"text_encoder{suffix}"](tokens, output_hidden_states=True)
            states.append(output.hidden_states[-2][0].float())
        told = torch.cat(states, -1), output[0][0].float()
        if prompt == "" and self.parts["force_zeros_for_empty_prompt"]:
            return tuple(torch.zeros_like(each) for each in told)
        return told

    @property
    def text_width(self) -> int:
        return text_width(self.parts["unet"])

    def forward(self, network: nn.Module, x_t: Latents, t: Times, told: Sequence[Tensor]) -> Latents:
        states, pooled = told
        pixels = float(self.size * self.factor)
        sizes = torch.tensor([pixels, pixels, 0.0, 0.0, pixels, pixels], device=x_t.device)  # original, crop, target
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(x_t), -1)}
        return network(x_t, t, states, added_cond_kwargs=added, return_dict=False)[0]
