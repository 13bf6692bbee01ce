"""What pictures look like, without a network: cheap statistics that run away when a reward is hacked."""

import io

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

Pictures = Float[Tensor, "b 3 h w"]  # RGB in [0, 1]
PerPicture = Float[Tensor, " b"]


def luma(images: Pictures) -> Float[Tensor, "b h w"]:
    """Rec. 601 weights, as in JPEG."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor([0.299, 0.587, 0.114]))


def saturation(images: Pictures) -> PerPicture:
    """HSV saturation, (max - min) / max over channels, mean over pixels; 0 for black."""
    high, low = images.amax(1), images.amin(1)
    return ((high - low) / high.clamp(min=1e-6)).mean((1, 2))


def dark_share(images: Pictures) -> PerPicture:
    """Share of pixels with luma below 0.1."""
    return (luma(images) < 0.1).float().mean((1, 2))


def bright_share(images: Pictures) -> PerPicture:
    """Share of pixels with luma above 0.9."""
    return (luma(images) > 0.9).float().mean((1, 2))


def edge_density(images: Pictures) -> PerPicture:
    """Mean absolute difference of neighbouring pixels' luma, both directions added."""
    grey = luma(images)
    return grey.diff(dim=1).abs().mean((1, 2)) + grey.diff(dim=2).abs().mean((1, 2))


def colour_entropy(images: Pictures) -> PerPicture:
    """Entropy of the histogram over 4 x 4 x 4 colours, bits: 0 for one colour, 6 for all alike."""
    levels = (images * 4).long().clamp(0, 3)
    index = (levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]).flatten(1)
    counts = torch.zeros(len(images), 64, device=images.device).scatter_add_(1, index, torch.ones_like(index).float())
    return torch.special.entr(counts / index.shape[1]).sum(1) / torch.log(torch.tensor(2.0))


def jpeg_bytes(images: Pictures) -> PerPicture:
    """Size as JPEG of quality 90, the header included."""
    sizes = []
    for picture in (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        sizes.append(float(buffer.tell()))
    return torch.tensor(sizes, device=images.device)


STATISTICS = {
    "saturation": saturation,
    "dark_share": dark_share,
    "bright_share": bright_share,
    "edge_density": edge_density,
    "colour_entropy": colour_entropy,
    "jpeg_bytes": jpeg_bytes,
}


class PictureStatistics(Metric):
    """Means of all of `STATISTICS` over pictures; `compute` gives them by name."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(STATISTICS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Pictures) -> None:
        values = torch.stack([statistic(images).double().sum() for statistic in STATISTICS.values()])
        self.total += values
        self.count += len(images)

    def compute(self) -> dict[str, float]:
        means = self.total / self.count.clamp(min=1)
        return dict(zip(STATISTICS, means.tolist(), strict=True))
