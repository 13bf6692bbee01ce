"""Rewards that are a CLIP similarity: HPS (Wu et al. 2023) and PickScore (Kirstain et al. 2023)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from src.files import write_json
from src.hub import MOMENTS, TOKENIZER, fetch, load_tokenizer, read_json
from src.rewards.base import DTYPES, Comparisons, Images, Precision, RewardModel, tower_input
from src.rewards.towers import clip_tower
from src.saving import save_tokenizer
from src.texts import longer_than


class CLIPReward(RewardModel):
    """exp(logit scale) * cos(image embedding, text embedding) of a transformers CLIPModel.

    PickScore v1 is `yuvalkirstain/PickScore_v1` with the processor of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.

    Args:
        path: folder or hub id of a CLIPModel (config.json, model.safetensors), `revision` of the latter.
        processor: folder or hub id of its tokenizer and preprocessor_config.json, where that is another one;
            `processor_revision` of the latter.
        precision: of the towers; similarities are taken in float32.
        shared: one copy in memory for all rewards of the same weights and precision; such a one is not to be trained.
        batch_size: pictures scored at a time.
    """

    scores_embeddings = True
    mean: Tensor
    std: Tensor
    max_tokens: int
    fit: Literal["crop", "pad"] = "crop"

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        processor: str | None = None,
        processor_revision: str | None = None,
        precision: Precision = "fp32",
        shared: bool = False,
        batch_size: int = 256,
    ):
        super().__init__()
        own = () if processor else ("preprocessor_config.json",)
        folder = fetch(path, "reward path", ("config.json", "model.safetensors", *own), TOKENIZER, revision)
        processed = folder
        if processor:
            processed = fetch(
                processor, "reward processor", ["preprocessor_config.json"], TOKENIZER, processor_revision
            )
        self._adopt(
            clip_tower(folder, f"reward path={path}", precision, shared),
            load_tokenizer(CLIPTokenizer, processed, "reward processor"),
            read_json(
                processed / "preprocessor_config.json",
                f"reward processor={processor}" if processor else f"reward path={path}",
                MOMENTS,
            ),
            DTYPES[precision],
        )
        self.batch_size = batch_size

    def _adopt(self, clip: CLIPModel, tokenizer: CLIPTokenizer, processor: dict, dtype: torch.dtype) -> None:
        self.clip, self.tokenizer, self.processor, self.tower_dtype = clip, tokenizer, processor, dtype
        self.image_size: int = clip.config.vision_config.image_size
        self.embed_dim = clip.config.projection_dim
        self.max_tokens = clip.config.text_config.max_position_embeddings
        self.register_buffer("mean", torch.tensor(processor["image_mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor["image_std"]).view(3, 1, 1), persistent=False)
        self._text_cache: dict[str, Tensor] = {}

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        """Unit-length embeddings of the image tower."""
        pixels = tower_input(images, self.image_size, self.mean, self.std, self.fit)
        return self._unit(self.clip.get_image_features(pixel_values=pixels.to(self.tower_dtype)).pooler_output)

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit-length embeddings of the text tower; each distinct prompt is embedded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text_cache]
        # Of a frozen tower each by itself: in a batch its embedding would depend, in its last bits, on what else
        # happened to be new. One that learns keeps none, and batches save time.
        for batch in [new] * bool(new) if self.learns else [[prompt] for prompt in new]:
            self._text_cache.update(zip(batch, self._embed_texts(batch), strict=True))
        return torch.stack([self._text_cache[prompt] for prompt in prompts])

    @property
    def learns(self) -> bool:
        """Whether its towers are trained."""
        return self.clip.logit_scale.requires_grad

    def _embed_texts(self, prompts: list[str]) -> Float[Tensor, "b d"]:
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        return self._unit(self.clip.get_text_features(input_ids=tokens.input_ids.to(self.device)).pooler_output)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        return longer_than(self.max_tokens, self.tokenizer, prompts)

    def _unit(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if self.tower_dtype != torch.float32:
            features = features.float()
        return F.normalize(features, dim=-1)

    def learnable(self) -> list[torch.nn.Parameter]:
        """Both towers and the logit scale, as HPS v2 and PickScore tune them."""
        return list(self.clip.parameters())

    def loss(self, batch: Comparisons) -> Float[Tensor, ""]:
        self._text_cache.clear()  # the text tower moves
        loss = super().loss(batch)
        self._text_cache.clear()
        return loss

    def save(self, folder: Path) -> None:
        self.clip.half().save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)
        write_json(folder / "preprocessor_config.json", self.processor)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.score_of(self.embed_images(images), prompts)

    def score_of(self, embedded: Float[Tensor, "b d"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.clip.logit_scale.exp() * cosine(embedded, self.embed_texts(prompts))


def cosine(images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """Of each picture with its prompt, both of unit length."""
    return (images * texts).sum(-1)
