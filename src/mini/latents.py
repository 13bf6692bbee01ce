"""What the denoisers of the miniature world learn from: latents of augmented animals, and captions of them."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float, Int
from torch import Tensor

from src.critic.image_tower import computes_in_bfloat16
from src.mini.captions import all_captions, captions, plain_captions
from src.mini.data import augment, to_float
from src.mini.stage import Stage
from src.prompts import SIMPLE_ANIMALS


class LatentStage(Stage):
    """Base of the denoisers. A bank of `bank_views` augmentations a picture is encoded once."""

    def __init__(
        self,
        *,
        bank_views: int,
        augmentation: float,
        prompt_share: float,
        drop_caption: float,
        styled: float,
        export_dir: str,
        **kw,
    ):
        super().__init__(**kw)
        self.export_dir, self.augmentation = Path(export_dir), augmentation
        self.bank_views, self.prompt_share, self.drop_caption, self.styled = (
            bank_views, prompt_share, drop_caption, styled,
        )  # fmt: skip
        self.emoji = self.emoji.animals()
        self.captions = all_captions(self.emoji.names)
        index = {text: i for i, text in enumerate(self.captions)}
        per_picture = zip(self.emoji.concept.tolist(), self.emoji.style.tolist(), strict=True)
        named = [(self.emoji.names[concept], style) for concept, style in per_picture]
        self.plain = torch.tensor([[index[t] for t in plain_captions(name)] for name, _ in named])
        self.with_style = torch.tensor([[index[t] for t in captions(name, s)[-2:]] for name, s in named])
        self.picture_weight = self._picture_weights()

    def _picture_weights(self) -> Float[Tensor, " n"]:
        """Each concept equally likely within its group; the group of prompts gets `prompt_share` of the draws."""
        size = torch.bincount(self.emoji.concept, minlength=len(self.emoji.names))
        prompted = torch.tensor([name in SIMPLE_ANIMALS for name in self.emoji.names])
        group = torch.where(prompted, self.prompt_share / prompted.sum(), (1 - self.prompt_share) / (~prompted).sum())
        return (group / size)[self.emoji.concept]

    @torch.no_grad()
    def setup(self, stage: str) -> None:
        vae = AutoencoderTiny.from_pretrained(self.weights_dir / "base" / "vae", torch_dtype=torch.float32)
        vae = vae.to(memory_format=torch.channels_last)
        rng = torch.Generator().manual_seed(self.seed)
        pictures = to_float(self.emoji.images)
        rough, views = computes_in_bfloat16(torch.device("cpu")), []
        for _ in range(self.bank_views):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rough):
                views.append(
                    vae.encode(augment(pictures, rng, self.augmentation) * 2 - 1).latents.half()
                    * vae.config.scaling_factor
                )
        self.bank = torch.stack(views)  # view x picture x 4 x 16 x 16

    def draw(self, rng: torch.Generator) -> tuple[Float[Tensor, "b 4 16 16"], Int[Tensor, " b"]]:
        """Latents and the places of one of their captions in `captions`."""
        index = torch.multinomial(self.picture_weight, self.batch_size, replacement=True, generator=rng)
        latents = self.bank[torch.randint(self.bank_views, index.shape, generator=rng), index].float()
        u = torch.rand(self.batch_size, generator=rng)
        plain = self.plain[index, torch.randint(self.plain.shape[1], index.shape, generator=rng)]
        styled = self.with_style[index, torch.randint(2, index.shape, generator=rng)]
        caption = torch.where(u < self.styled, styled, plain)
        return latents, torch.where(u > 1 - self.drop_caption, 0, caption)  # caption 0 is the empty one
