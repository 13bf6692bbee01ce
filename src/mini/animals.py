"""What stages that learn to tell sound pictures of animals from broken ones have in common: the sound ones."""

from typing import Any

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float, Int
from torch import Tensor

from src.critic.image_tower import computes_in_bfloat16
from src.mini.corruptions import Pictures
from src.mini.data import augment, to_float
from src.mini.stage import Stage


class AnimalStage(Stage):
    """A stage on the animals, with the base's decoder at hand."""

    def __init__(self, **kw: Any):
        super().__init__(**kw)
        self.emoji = self.emoji.animals()
        vae = AutoencoderTiny.from_pretrained(self.weights_dir / "base" / "vae", torch_dtype=torch.float32)
        self._vae = [vae.requires_grad_(False).eval()]  # in a list, so that it is no part of what is trained and saved

    def real(self, n: int, rng: torch.Generator) -> tuple[Pictures, Int[Tensor, " n"]]:
        """Augmented real pictures and their concepts, every concept equally likely."""
        size = torch.bincount(self.emoji.concept)
        index = torch.multinomial((1 / size)[self.emoji.concept], n, replacement=True, generator=rng)
        images = augment(to_float(self.emoji.images[index]), rng, strength=1.2)
        tint = 1 + 0.1 * (2 * torch.rand(n, 3, 1, 1, generator=rng) - 1)
        return (1 - (1 - images) * tint).clamp(0, 1), self.emoji.concept[index]

    @torch.no_grad()
    def through_vae(self, images: Pictures, noise: Float[Tensor, " b"], rng: torch.Generator) -> Pictures:
        """What the base model's decoder makes of the pictures' latents with noise of that standard deviation."""
        vae = self._vae[0].to(images.device)
        rough = computes_in_bfloat16(images.device)  # else it would take sixty times as long
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=rough):
            latents = vae.encode(images * 2 - 1).latents.float() * vae.config.scaling_factor
            latents = latents + noise[:, None, None, None] * torch.randn(latents.shape, generator=rng)
            return (vae.decode(latents / vae.config.scaling_factor).sample.float() / 2 + 0.5).clamp(0, 1)
