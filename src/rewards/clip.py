"""Rewards that are a CLIP similarity: HPS (Wu et al. 2023) and PickScore (Kirstain et al. 2023)."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from src.errors import UserError
from src.rewards.base import Comparisons, Images, RewardModel, tower_input
from src.run_folder import write_json


class CLIPReward(RewardModel):
    """exp(logit scale) * cos(image embedding, text embedding) of a transformers CLIPModel folder."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: str):
        super().__init__()
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            if not (Path(path) / name).exists():
                raise UserError(f"reward path={path}: no CLIP model there ({name} is missing).")
        self.clip = CLIPModel.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
        self.clip.requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        self.processor: dict = json.loads((Path(path) / "preprocessor_config.json").read_text())
        self.image_size: int = self.clip.config.vision_config.image_size
        self.embed_dim = self.clip.config.projection_dim
        self.register_buffer("mean", torch.tensor(self.processor["image_mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.processor["image_std"]).view(3, 1, 1), persistent=False)
        self._text_cache: dict[str, Tensor] = {}

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        """Unit-length embeddings of the image tower."""
        features = self.clip.get_image_features(
            pixel_values=tower_input(images, self.image_size, self.mean, self.std)
        ).pooler_output
        return F.normalize(features, dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit-length embeddings of the text tower; each distinct prompt is embedded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text_cache]
        if new:
            length = self.clip.config.text_config.max_position_embeddings
            tokens = self.tokenizer(new, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            features = self.clip.get_text_features(input_ids=tokens.input_ids.to(self.device)).pooler_output
            self._text_cache.update(zip(new, F.normalize(features, dim=-1), strict=True))
        return torch.stack([self._text_cache[prompt] for prompt in prompts])

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
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", self.processor)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        similarity = (self.embed_images(images) * self.embed_texts(prompts)).sum(-1)
        return self.clip.logit_scale.exp() * similarity
