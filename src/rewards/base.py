"""What a reward model is: pictures and prompts in, one number a picture out, higher is better."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor

from src.errors import UserError

Images = Float[Tensor, "b 3 h w"]
Precision = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Comparisons:
    """Two pictures for each prompt, and which one was preferred."""

    first: Images
    second: Images
    prompts: list[str]
    preferred: Float[Tensor, " b"]  # 1: the first, 0: the second


@dataclass
class Ratings:
    """Pictures rated without regard to a prompt."""

    images: Images
    ratings: Float[Tensor, " b"]


class RewardModel(LightningModule):
    """Base of all reward families. Subclasses define `forward` and, to feed a critic, `embed_images`.

    Scores are in the family's own units; the framework normalises them per prompt where it needs to. A family that
    learns from preferences also defines `learnable` and `save`; its loss is Bradley-Terry's unless it has another.
    """

    embed_dim: int  # width of embed_images
    max_tokens: int | None = None  # of a prompt that are read; None for all
    batch_size: int = 256  # pictures scored at a time
    sees_prompt = True
    queries: int = 1  # rewards that a picture's score asks
    scores_embeddings = False  # whether the embedding of a picture is all that its score depends on
    optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]  # set before training
    centering: float = 0.0  # weight of the spread of prompts' offsets in the loss; set before training

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores; differentiable with respect to the images."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UserError if there is one that cannot be scored; most families take any."""

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are cut at `max_tokens`, so that their end plays no part in their scores."""
        return []

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        """Features of the frozen image tower."""
        raise NotImplementedError(f"{type(self).__name__} has no image tower for a critic")

    def score_of(self, embedded: Float[Tensor, "b d"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The scores of pictures with these embeddings, where `scores_embeddings`."""
        raise NotImplementedError(f"{type(self).__name__} sees more of a picture than its embedding")

    @torch.no_grad()
    def embed_and_score(
        self, images: Images, prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """`embed_images` and the scores, without a gradient, of one batch of pictures in [0, 1].

        They are looked at once where the embedding is enough to score them.
        """
        embedded = self.embed_images(images)
        return embedded, self.score_of(embedded, prompts) if self.scores_embeddings else self.score(images, prompts)

    # ------------------------------------------------------------------------------------ learning from preferences

    def learnable(self) -> list[torch.nn.Parameter]:
        """The parameters that preferences tune."""
        raise NotImplementedError(f"{type(self).__name__} does not learn from preferences")

    def save(self, folder: Path) -> None:
        """Writes the weights in the format that the constructor's `path` reads."""
        raise NotImplementedError(f"{type(self).__name__} does not save")

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """-log p of the labels under Bradley-Terry, p(first preferred) = sigmoid(r_first - r_second), and centring.

        Comparisons within prompts leave each prompt's offset open. Centring draws the means of all pairs together, so
        that scores of several prompts have one scale; after Eisenstein et al. 2023 (arXiv 2312.09244), who draw them
        to zero, which a similarity of CLIP's could not follow.
        """
        first, second = self(batch.first, batch.prompts), self(batch.second, batch.prompts)
        likelihood = F.binary_cross_entropy_with_logits(first - second, batch.preferred)
        return likelihood + self.centering * ((first + second) / 2).var(correction=0)

    def training_step(self, batch: Any, batch_idx: int) -> Float[Tensor, ""]:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        learnable = self.learnable()
        for parameter in learnable:
            parameter.requires_grad_()
        optimizer = self.optimizer(learnable)
        steps = int(self.trainer.estimated_stepping_batches)
        rise = lambda step: min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))  # noqa: E731
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---------------------------------------------------------------------------------------------------- scoring

    def score(
        self, images: Float[Tensor, "..."], prompts: Sequence[str], differentiable: bool = False
    ) -> Float[Tensor, " b"]:
        """Scores in float32, on request with a gradient with respect to the images.

        Raises ValueError on pictures outside [0, 1] or a missing prompt.
        """
        check_inputs(images, prompts)
        # a reward has a precision of its own
        with torch.set_grad_enabled(differentiable), torch.autocast(images.device.type, enabled=False):
            return self._score(images, prompts)

    def has_gradient(self, prompt: str) -> bool:
        """Whether scores have a gradient with respect to the picture."""
        grey = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        return self.score(grey, [prompt], differentiable=True).requires_grad

    def _score(self, images: Float[Tensor, "..."], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        starts = range(0, len(images), self.batch_size)
        parts = [self._batch(images[i : i + self.batch_size], prompts[i : i + self.batch_size]) for i in starts]
        return torch.cat(parts)

    def _batch(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Raises UserError where that is not one number a picture."""
        scores = self(images, prompts)
        if not isinstance(scores, Tensor) or scores.shape != (len(images),):
            given = list(scores.shape) if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise UserError(
                f"the reward {type(self).__module__}.{type(self).__name__} gives {given} for {len(images)} pictures: "
                f"its forward has to return a tensor of shape [{len(images)}], one number a picture."
            )
        return scores.float()


def tower_input(
    images: Images,
    size: int,
    mean: Float[Tensor, "3 1 1"],
    std: Float[Tensor, "3 1 1"],
    fit: Literal["crop", "pad"] = "crop",
) -> Float[Tensor, "b 3 size size"]:
    """Pictures as a tower wants them: resized (bicubic, antialiased), square and normalised, differentiably.

    `crop`, of CLIP's and ImageReward's packages: the shorter side becomes `size`, and the centre is cut out. They
    resize 8-bit pictures by PIL, which rounds to 8 bits after the columns and after the rows; nothing is rounded here.
    From 512 to 224 pixels that is 0.3 of 255 levels in the mean, at most 1.1 for smooth pictures and 3.5 for noise,
    and moves scores of the miniature CLIP by at most 3% of their standard deviation (tests/test_released_rewards.py).
    `pad`, of HPS's package, which resizes tensors as we do: the longer side becomes `size`, black fills the rest.
    """
    if images.shape[-2:] != (size, size):
        images = _cropped(images, size) if fit == "crop" else _padded(images, size)
    return (images - mean) / std


def _cropped(images: Images, size: int) -> Float[Tensor, "b 3 size size"]:
    h, w = images.shape[-2:]
    h, w = int(size * h / min(h, w)), int(size * w / min(h, w))
    images = F.interpolate(images, size=(h, w), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (h - size) // 2, (w - size) // 2
    return images[..., top : top + size, left : left + size]


def _padded(images: Images, size: int) -> Float[Tensor, "b 3 size size"]:
    h, w = images.shape[-2:]
    h, w = round(size * h / max(h, w)), round(size * w / max(h, w))
    images = F.interpolate(images, size=(h, w), mode="bicubic", antialias=True)
    top, left = (size - h) // 2, (size - w) // 2
    return F.pad(images, (left, size - w - left, top, size - h - top))


def check_inputs(images: Float[Tensor, "..."], prompts: Sequence[str]) -> None:
    """Raises ValueError unless pictures are [b, 3, h, w] in [0, 1], with a prompt for each."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [batch, 3, height, width], not {list(images.shape)}")
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} images need as many prompts, not {len(prompts)}")
    low, high = images.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails too
        raise ValueError(f"images must lie in [0, 1], not in [{low.item():.3g}, {high.item():.3g}]")
