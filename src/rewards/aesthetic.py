"""The LAION aesthetic predictor's class of model (Schuhmann et al. 2022): an MLP on frozen CLIP image embeddings."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from src.errors import UserError
from src.files import write_json
from src.hub import fetch, fetch_file, fill, read_checkpoint, read_json
from src.rewards.base import Images, Precision, Ratings, RewardModel
from src.rewards.clip import CLIPReward
from src.rewards.released import linear_layers


class AestheticReward(RewardModel):
    """Linear layers on unit-length CLIP image embeddings; the prompt plays no part.

    LAION's predictor is `sac+logos+ava1-l14-linearMSE.pth` (on the hub: `trl-lib/ddpo-aesthetic-predictor` with
    `aesthetic-model.pth`) on `openai/clip-vit-large-patch14`.

    Args:
        clip: CLIPModel, frozen: folder or hub id, `clip_revision` of the latter.
        path: folder with config.json (hidden widths) and model.safetensors, or, where there is a `filename`, the folder
            or hub id (`revision`) of that checkpoint, as LAION released it; null for a fresh MLP.
        hidden: widths, for a fresh MLP. seed: of its first weights.
        precision: of the tower; the MLP stays in float32. shared, batch_size: see CLIPReward.
    """

    scores_embeddings = True
    sees_prompt = False

    def __init__(
        self,
        clip: str,
        path: str | None = None,
        hidden: list[int] | None = None,
        seed: int = 0,
        filename: str | None = None,
        revision: str | None = None,
        clip_revision: str | None = None,
        precision: Precision = "fp32",
        shared: bool = False,
        batch_size: int = 256,
    ):
        super().__init__()
        self.batch_size = batch_size
        self.clip = CLIPReward(clip, clip_revision, precision=precision, shared=shared)
        self.embed_dim = self.clip.embed_dim
        if path and filename:
            self._build_released(fetch_file(path, "aesthetic path", filename, revision), f"aesthetic path={path}")
        elif path:
            folder = fetch(path, "aesthetic path", ["config.json", "model.safetensors"], revision=revision)
            option = f"aesthetic path={path}"
            self._build(read_json(folder / "config.json", option, ["hidden"])["hidden"], seed)
            fill(self.mlp, folder / "model.safetensors", option)
        else:
            self._build(hidden or [64, 16], seed)
        self.requires_grad_(False).eval()

    def _build(self, hidden: list[int], seed: int) -> None:
        self.hidden = hidden
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip([self.embed_dim, *hidden], hidden, strict=False):
            # linear throughout, as published; a reward stays in eval mode, so that nothing drops
            layers += [nn.Linear(inputs, outputs), nn.Dropout(0.1)]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def _build_released(self, file: Path, option: str) -> None:
        chain = linear_layers(read_checkpoint(file, option), option)
        if chain[0].in_features != self.embed_dim:
            wanted = chain[0].in_features
            raise UserError(
                f"{option}: it takes embeddings of width {wanted}, and clip gives {self.embed_dim}: give another clip."
            )
        self._build([layer.out_features for layer in chain[:-1]], seed=0)
        own = [module for module in self.mlp.children() if isinstance(module, nn.Linear)]
        for layer, released in zip(own, chain, strict=True):
            layer.load_state_dict(released.state_dict())

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        return self.clip.embed_images(images)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.score_of(self.embed_images(images), prompts)

    def score_of(self, embedded: Float[Tensor, "b d"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.mlp(embedded).squeeze(-1)

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
