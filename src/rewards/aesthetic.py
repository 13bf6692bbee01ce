"""The LAION aesthetic predictor's class of model (Schuhmann et al. 2022): an MLP on frozen CLIP image embeddings."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from src.errors import UserError
from src.rewards.base import Images, Ratings, RewardModel
from src.rewards.clip import CLIPReward
from src.run_folder import write_json


class AestheticReward(RewardModel):
    """Linear layers on unit-length CLIP image embeddings; the prompt plays no part.

    Args:
        clip: CLIPModel folder, frozen.
        path: folder with config.json (hidden widths) and model.safetensors; null for a fresh MLP.
        hidden: widths, for a fresh MLP. seed: of its first weights.
    """

    def __init__(self, clip: str, path: str | None = None, hidden: list[int] | None = None, seed: int = 0):
        super().__init__()
        if path is not None and not (Path(path) / "model.safetensors").exists():
            raise UserError(f"reward path={path}: no aesthetic head there (model.safetensors is missing).")
        self.clip = CLIPReward(clip)
        self.embed_dim = self.clip.embed_dim
        stored = json.loads((Path(path) / "config.json").read_text()) if path else {"hidden": hidden or [64, 16]}
        self.hidden: list[int] = stored["hidden"]
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip([self.embed_dim, *self.hidden], self.hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.Dropout(0.1)]  # linear throughout, as published
        self.mlp = nn.Sequential(*layers, nn.Linear(self.hidden[-1], 1))
        if path:
            self.mlp.load_state_dict(load_file(Path(path) / "model.safetensors"))
        self.requires_grad_(False).eval()

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        return self.clip.embed_images(images)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.mlp(self.embed_images(images)).squeeze(-1)

    def learnable(self) -> list[nn.Parameter]:
        """The MLP alone."""
        return list(self.mlp.parameters())

    def loss(self, batch: Ratings) -> Float[Tensor, ""]:
        """Squared error of the ratings."""
        return F.mse_loss(self.mlp(self.embed_images(batch.images)).squeeze(-1), batch.ratings)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"hidden": self.hidden})
        save_file(self.mlp.state_dict(), folder / "model.safetensors")
