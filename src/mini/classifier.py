"""The independent classifier: which animal is it? Trained on the real pictures only, and used for checks only."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from src.mini.clip import photometric
from src.mini.data import augment, to_float
from src.mini.stage import Stage


class ClassifierStage(Stage):
    """A small ResNet on augmented pictures of the animals; cross-entropy over concepts."""

    def __init__(self, *, hidden_sizes: list[int], **kw):
        super().__init__(**kw)
        self.emoji = self.emoji.animals()
        names = dict(enumerate(self.emoji.names))
        config = ResNetConfig(
            embedding_size=hidden_sizes[0],
            hidden_sizes=list(hidden_sizes),
            depths=[1] * len(hidden_sizes),
            layer_type="basic",
            id2label=names,
            label2id={name: i for i, name in names.items()},
        )
        self.classifier = ResNetForImageClassification(config).to(memory_format=torch.channels_last)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        rng = self.step_generator()
        index = torch.randint(len(self.emoji.images), (self.batch_size,), generator=rng)
        images = augment(to_float(self.emoji.images[index]), rng, strength=1.2)
        altered = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.7
        images = torch.where(altered, photometric(images, rng), images).to(self.device)
        logits = self.classifier(images * 2 - 1).logits.float()
        target = self.emoji.concept[index].to(self.device)
        loss = F.cross_entropy(logits, target, label_smoothing=0.05)
        self.log_dict({"loss": loss, "top1": (logits.argmax(1) == target).float().mean()}, prog_bar=True)
        return loss

    def export(self) -> None:
        self.classifier.half().save_pretrained(self.weights_dir / "classifier")
