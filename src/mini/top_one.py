"""The independent classifier as a judge: does it put the prompted animal first? A check on gold itself."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import ResNetForImageClassification

from src.errors import UserError
from src.hub import load_strictly
from src.mini.gold import home_size, subject
from src.rewards.base import Images, RewardModel


class ClassifierTopOne(RewardModel):
    """1 where the classifier's first choice is the prompted animal, else 0; its mean is an accuracy.

    Args:
        path: folder of a transformers ResNetForImageClassification whose labels are the animals.
    """

    def __init__(self, path: str):
        super().__init__()
        if not (Path(path) / "model.safetensors").exists():
            raise UserError(
                f"classifier path={path}: no classifier there (model.safetensors is missing); give a folder with one."
            )
        self.model = load_strictly(ResNetForImageClassification, Path(path), f"classifier path={path}")
        self.names = [self.model.config.id2label[k] for k in range(self.model.config.num_labels)]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            subject(prompt, self.names)

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        wanted = torch.tensor([subject(prompt, self.names) for prompt in prompts], device=images.device)
        return (self.model(home_size(images) * 2 - 1).logits.argmax(1) == wanted).float()
