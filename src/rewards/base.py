"""What a reward model is: pictures and prompts in, one number a picture out, higher is better."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor

Images = Float[Tensor, "b 3 h w"]


class RewardModel(LightningModule):
    """Base of all reward families. Subclasses define `forward` and, to feed a critic, `embed_images`.

    Scores are in the family's own units; the framework normalises them per prompt where it needs to.
    """

    embed_dim: int  # width of embed_images
    batch_size: int = 256  # pictures scored at a time

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores; differentiable with respect to the images."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        """Features of the frozen image tower."""
        raise NotImplementedError(f"{type(self).__name__} has no image tower for a critic")

    @torch.no_grad()
    def score(self, images: Float[Tensor, "..."], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores in float32. Raises ValueError on pictures outside [0, 1] or a missing prompt."""
        check_inputs(images, prompts)
        starts = range(0, len(images), self.batch_size)
        parts = [self(images[i : i + self.batch_size], prompts[i : i + self.batch_size]).float() for i in starts]
        return torch.cat(parts)


def check_inputs(images: Float[Tensor, "..."], prompts: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [batch, 3, height, width], not {list(images.shape)}")
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} images need as many prompts, not {len(prompts)}")
    low, high = images.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails too
        raise ValueError(f"images must lie in [0, 1], not in [{low.item():.3g}, {high.item():.3g}]")
