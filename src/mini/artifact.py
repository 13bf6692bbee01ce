"""Training of the artifact classifier: is a picture sound, or broken? Whatever it shows.

Sound are real pictures under augmentation; broken ones have one of the corruptions, so strong that it shows. Half of
all pass through the base's decoder, so that its handwriting tells nothing. Gold has no part in it: no judgement, no
weights, and none of its adversarial pictures.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from src.mini.animals import AnimalStage
from src.mini.corruptions import CORRUPTIONS, Pictures, corrupt
from src.mini.data import EmojiData
from src.rewards.artifact import LABELS

HELD_OUT_EVERY = 10  # pictures; the classifier is measured on these


def held_out(emoji: EmojiData, yes: bool) -> EmojiData:
    """The pictures that the classifier is measured on, or those that it learns from."""
    chosen = (torch.arange(len(emoji.images)) % HELD_OUT_EVERY == 0) == yes
    return replace(emoji, images=emoji.images[chosen], concept=emoji.concept[chosen], style=emoji.style[chosen])


class ArtifactStage(AnimalStage):
    """A small ResNet; cross-entropy over sound and broken, with smoothed labels, so that its log-odds stay bounded.

    Args:
        least_severity: of a broken picture; up to 1.
        smoothing: of the labels.
        bank_size: pictures of either kind that the base's decoder draws, before training.
    """

    def __init__(
        self,
        *,
        hidden_sizes: list[int],
        least_severity: float,
        smoothing: float,
        bank_size: int,
        export_dir: str,
        **kw,
    ):
        super().__init__(**kw)
        self.emoji = held_out(self.emoji, False)
        self.least_severity, self.smoothing, self.bank_size = least_severity, smoothing, bank_size
        self.export_dir = Path(export_dir)
        config = ResNetConfig(
            embedding_size=hidden_sizes[0],
            hidden_sizes=list(hidden_sizes),
            depths=[1] * len(hidden_sizes),
            layer_type="basic",
            id2label=dict(enumerate(LABELS)),
            label2id={name: k for k, name in enumerate(LABELS)},
        )
        torch.manual_seed(self.seed)
        self.classifier = ResNetForImageClassification(config).to(memory_format=torch.channels_last)

    def broken(self, images: Pictures, rng: torch.Generator) -> Pictures:
        """Each by one corruption."""
        severity = self.least_severity + (1 - self.least_severity) * torch.rand(len(images), generator=rng)
        kinds = list(CORRUPTIONS)
        chosen = torch.randint(len(kinds), (len(images),), generator=rng).tolist()
        return corrupt(images, severity, [kinds[k] for k in chosen], rng)

    @cached_property
    def bank(self) -> tuple[Pictures, Pictures]:
        """Broken and sound pictures as the base's decoder draws them: made once, for that takes longer than a step."""
        rng = torch.Generator().manual_seed(self.seed)
        sound, _ = self.real(2 * self.bank_size, rng)
        images = torch.cat([self.broken(sound[: self.bank_size], rng), sound[self.bank_size :]])
        drawn = torch.cat([self.through_vae(part, torch.zeros(len(part)), rng) for part in images.split(64)])
        return drawn[: self.bank_size], drawn[self.bank_size :]

    def draw(self, rng: torch.Generator) -> tuple[Pictures, Int[Tensor, " b"]]:
        """Pictures of which half are broken, and half drawn by the base's decoder; and which are sound."""
        n = self.batch_size // 4
        broken, sound = (part[torch.randint(len(part), (2 * n,), generator=rng)] for part in self.bank)
        real, _ = self.real(2 * n, rng)
        spoilt = self.broken(torch.cat([real[n:], sound[n:]])[torch.randperm(2 * n, generator=rng)[:n]], rng)
        return torch.cat([broken[:n], spoilt, sound[:n], real[:n]]), (torch.arange(4 * n) >= 2 * n).long()

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        images, sound = (part.to(self.device) for part in self.draw(self.step_generator()))
        logits = self.classifier(images * 2 - 1).logits.float()
        loss = F.cross_entropy(logits, sound, label_smoothing=self.smoothing)
        self.log_dict({"loss": loss, "top1": (logits.argmax(1) == sound).float().mean()}, prog_bar=True)
        return loss

    def export(self) -> None:
        self.classifier.half().save_pretrained(self.export_dir)
