"""An artifact reward (2601.03468): how sure a small classifier is that a picture is sound; added to another reward.

It does not see the prompt, and by itself asks for nothing but an unbroken picture.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import ResNetForImageClassification

from src.errors import UserError
from src.hub import load_strictly, require_weights
from src.rewards.base import Images, RewardModel, tower_input

LABELS = ("broken", "sound")


class ArtifactReward(RewardModel):
    """log p(sound) - log p(broken), nats.

    Args:
        path: folder of a transformers ResNetForImageClassification with the labels `broken` and `sound`.
        size: of the pictures that it has learnt; others are resized. Values are taken from -1 to 1.
    """

    scores_embeddings = True
    sees_prompt = False
    middle: Tensor

    def __init__(self, path: str, size: int = 64):
        super().__init__()
        option = f"artifact path={path}"
        require_weights(Path(path), "model", None, option)
        self.model, self.size = load_strictly(ResNetForImageClassification, Path(path), option), size
        if self.model.config.id2label != dict(enumerate(LABELS)):
            raise UserError(f"{option}: its labels are not {' and '.join(LABELS)}, in this order; give another one.")
        self.embed_dim = self.model.config.hidden_sizes[-1]
        self.register_buffer("middle", torch.full((3, 1, 1), 0.5), persistent=False)

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        return self.model.resnet(tower_input(images, self.size, self.middle, self.middle)).pooler_output.flatten(1)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.score_of(self.embed_images(images), prompts)

    def score_of(self, embedded: Float[Tensor, "b d"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        broken, sound = self.model.classifier(embedded).unbind(1)
        return sound - broken
