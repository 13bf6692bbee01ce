"""Ways to break a picture, each with a severity from 0 (untouched) to 1 (no longer a picture of its subject).

The amplitudes are set by eye so that equal severities look about equally bad. The gold annotator learns from them, and
its card shows how its utility falls along each.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pictures = Float[Tensor, "b 3 h w"]  # RGB in [0, 1]
Severity = Float[Tensor, " b"]
Corruption = Callable[[Pictures, Severity, torch.Generator], Pictures]


def corrupt(images: Pictures, severity: Severity, kinds: list[str], rng: torch.Generator) -> Pictures:
    """Breaks picture i by corruption `kinds[i]`."""
    result = images.clone()
    for name in dict.fromkeys(kinds):
        index = torch.tensor([i for i, kind in enumerate(kinds) if kind == name])
        result[index] = CORRUPTIONS[name](images[index], severity[index], rng).clamp(0, 1)
    return result


def blur(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Gaussian blur, up to 6 pixels wide."""
    sigma = (6 * severity).clamp(min=1e-3)[:, None]
    offsets = torch.arange(-12.0, 13.0)
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, 1).repeat_interleave(3, 0)  # one a channel of each picture
    flat = F.pad(images.reshape(1, -1, *images.shape[2:]), (12, 12, 12, 12), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))
    return F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel)).view_as(images)


def noise(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Gaussian noise of standard deviation up to 0.8, of the pixels' own size or coarser."""
    size = images.shape[-1]
    grain = torch.stack([_field(images, cells, rng) for cells in (size, size // 2, size // 4)])
    which = torch.randint(len(grain), (len(images),), generator=rng)
    return images + 0.8 * _each(severity) * grain[which, torch.arange(len(images))]


def shuffle(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Moves a share of the 8x8 or 16x16 patches to each other's places."""
    h, w = images.shape[2:]
    result = []
    for picture, share in zip(images, severity.tolist(), strict=True):
        size = 8 if torch.rand((), generator=rng) < 0.7 else 16
        patches = F.unfold(picture[None], size, stride=size)[0]  # values x patch
        chosen = torch.randperm(patches.shape[1], generator=rng)[: round(share * patches.shape[1])]
        patches[:, chosen] = patches[:, chosen[torch.randperm(len(chosen), generator=rng)]]
        result.append(F.fold(patches[None], (h, w), size, stride=size)[0])
    return torch.stack(result)


def saturate(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Drives colours and contrast apart, up to 9 times."""
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (1 + 8 * _each(severity))
    return 0.5 + (images - 0.5) * (1 + 3 * _each(severity) ** 2)


def recolour(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Mixes the channels at random, the ground included."""
    mixing = torch.rand(len(images), 3, 3, generator=rng) * 2 - 0.6
    mixed = torch.einsum("bij,bjhw->bihw", mixing / mixing.sum(2, keepdim=True).clamp(min=0.3), images)
    return torch.lerp(images, mixed, _each(severity))


def erase(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Covers a rectangle of up to 90% of the area with one colour or with coarse noise."""
    b, _, h, w = images.shape
    aspect = torch.exp(torch.rand(b, generator=rng) - 0.5)
    side = (0.9 * severity).sqrt()
    height, width = (side * aspect).clamp(max=1) * h, (side / aspect).clamp(max=1) * w
    top = torch.rand(b, generator=rng) * (h - height)
    left = torch.rand(b, generator=rng) * (w - width)
    rows, columns = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    inside = (rows >= top[:, None, None]) & (rows < (top + height)[:, None, None])
    inside = inside & (columns >= left[:, None, None]) & (columns < (left + width)[:, None, None])
    colour = torch.rand(b, 3, 1, 1, generator=rng).expand_as(images)
    grain = 0.5 + 0.3 * _field(images, 16, rng)
    cover = torch.where(torch.rand(b, 1, 1, 1, generator=rng) < 0.5, colour, grain)
    return torch.where(inside[:, None], cover, images)


def warp(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Pushes pixels about by a smooth random field, up to a quarter of the picture."""
    b, _, h, w = images.shape
    cells = 4 if torch.rand((), generator=rng) < 0.5 else 8
    coarse = torch.randn(b, 2, cells, cells, generator=rng)
    field = F.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=True)
    identity = F.affine_grid(torch.eye(2, 3).expand(b, 2, 3), [b, 1, h, w], align_corners=False)
    grid = identity + 0.3 * severity[:, None, None, None] * field.permute(0, 2, 3, 1)
    return 1 - F.grid_sample(1 - images, grid, padding_mode="zeros", align_corners=False)


def texture(images: Pictures, severity: Severity, rng: torch.Generator) -> Pictures:
    """Lays a coloured grating over the picture."""
    b, _, h, w = images.shape
    angle = torch.rand(b, 1, 1, generator=rng) * torch.pi
    frequency = torch.exp(torch.rand(b, 1, 1, generator=rng) * 2.5) / 20  # 0.05 to 0.6 cycles a pixel
    rows, columns = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    wave = torch.sin(2 * torch.pi * frequency * (torch.cos(angle) * columns + torch.sin(angle) * rows))
    colour = torch.randn(b, 3, 1, 1, generator=rng)
    return images + 0.7 * _each(severity) * colour * wave[:, None]


def _each(severity: Severity) -> Float[Tensor, "b 1 1 1"]:
    return severity[:, None, None, None]


def _field(like: Pictures, cells: int, rng: torch.Generator) -> Pictures:
    """Unit Gaussian noise on a grid of `cells` x `cells`, enlarged to the pictures' size."""
    b, _, h, w = like.shape
    return F.interpolate(torch.randn(b, 3, cells, cells, generator=rng), size=(h, w), mode="nearest")


CORRUPTIONS: dict[str, Corruption] = {
    "blur": blur,
    "noise": noise,
    "shuffle": shuffle,
    "saturate": saturate,
    "recolour": recolour,
    "erase": erase,
    "warp": warp,
    "texture": texture,
}
