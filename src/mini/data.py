"""Emoji pictures with names: fetched from npm, verified, and cut down to 64x64 RGB on white.

Three art styles of the same concept: Noto (Apache-2.0), Twemoji (CC-BY 4.0) and Fluent 3D (MIT). People, flags and
symbols are left out; variants of one animal ("cat face", "cat") become one concept, so that a prompt has several
right answers. The pictures are not part of the repository; only weights trained on them are.
"""

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from src.errors import UserError

IMAGE_SIZE = 64
STYLES = ("shaded", "flat", "3d")  # Noto, Twemoji, Fluent

# package -> (pinned version, npm's own sha512 integrity string)
PACKAGES = {
    "emoji-datasource-google": (
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "emoji-datasource-twitter": (
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "@lobehub/fluent-emoji-3d": (
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
}
SKIPPED_CATEGORIES = ("Flags", "People & Body", "Symbols", "Component")
NOT_ANIMALS = {"feet", "feather", "wing", "shell", "coral", "spider_web", "microbe", "pig_nose", "oyster", "phoenix"}
# short name in the emoji data -> the concept it is a picture of, where that is not simply its own name
ANIMAL_OF = {
    "monkey_face": "monkey", "dog2": "dog", "guide_dog": "dog", "service_dog": "dog", "fox_face": "fox", "cat2": "cat",
    "black_cat": "cat", "lion_face": "lion", "tiger2": "tiger", "racehorse": "horse", "unicorn_face": "unicorn",
    "zebra_face": "zebra", "water_buffalo": "water buffalo", "cow2": "cow", "pig2": "pig",
    "dromedary_camel": "camel", "giraffe_face": "giraffe", "mouse2": "mouse", "rabbit2": "rabbit",
    "chipmunk": "squirrel", "polar_bear": "polar bear", "panda_face": "panda", "hatching_chick": "chick",
    "baby_chick": "chick", "hatched_chick": "chick", "dove_of_peace": "dove", "black_bird": "bird",
    "dragon_face": "dragon", "whale2": "whale", "tropical_fish": "tropical fish", "bug": "caterpillar",
}  # fmt: skip


@dataclass(frozen=True)
class EmojiData:
    """Every picture with the concept it shows, its style, and whether the concept is an animal."""

    images: UInt8[Tensor, "n 3 64 64"]  # RGB on white
    concept: Int[Tensor, " n"]  # index into names
    style: Int[Tensor, " n"]  # index into STYLES
    names: tuple[str, ...]  # animals first
    num_animals: int

    def animals(self) -> "EmojiData":
        """The pictures of animals alone, which are the first concepts."""
        keep = self.concept < self.num_animals
        names = self.names[: self.num_animals]
        return EmojiData(self.images[keep], self.concept[keep], self.style[keep], names, self.num_animals)


def load_emoji(folder: Path) -> EmojiData:
    """Loads the prepared pictures from `folder`, fetching and preparing them first where they are missing."""
    prepared = folder / "emoji64.npz"
    if not prepared.exists():
        _prepare(folder, prepared)
    with np.load(prepared) as arrays:
        images, concept, style = (torch.from_numpy(arrays[key]) for key in ("images", "concept", "style"))
        names = tuple(json.loads(str(arrays["names"])))
        return EmojiData(images, concept.long(), style.long(), names, int(arrays["num_animals"]))


def _fetch(folder: Path, package: str) -> Path:
    """Downloads one npm package as a tarball and verifies its checksum. Raises UserError if either fails."""
    version, sha512 = PACKAGES[package]
    path = folder / f"{package.replace('@', '').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package}@{version}", "--pack-destination", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace")
        except FileNotFoundError as error:
            raise UserError("npm was not found; install Node.js to fetch the emoji pictures.") from error
        except subprocess.CalledProcessError as error:
            raise UserError(f"npm could not fetch {package}@{version}: {error.stderr.strip()[-200:]}") from error
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != sha512:
        raise UserError(f"{path} does not have the expected sha512; delete it and try again.")
    return path


def _members(tarball: Path, wanted: str) -> dict[str, bytes]:
    with tarfile.open(tarball) as archive:
        found = (member for member in archive if member.isfile() and wanted in member.name)
        return {Path(member.name).name: archive.extractfile(member).read() for member in found}  # type: ignore[union-attr]


def _on_white(encoded: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(encoded)).convert("RGBA")
    if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
        # premultiplied, so that the hidden colour of transparent pixels does not bleed into the edges
        picture = picture.convert("RGBa").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB")).transpose(2, 0, 1)


def _concepts(table: list[dict]) -> Iterator[tuple[str, bool, dict]]:
    """Yields (concept name, is it an animal, row of the emoji table)."""
    for row in table:
        short = row["short_name"]
        if row["category"] in SKIPPED_CATEGORIES or short in NOT_ANIMALS:
            continue
        animal = row["subcategory"].startswith("animal-")
        name = ANIMAL_OF.get(short, short.replace("_", " ")) if animal else row["name"].lower()
        yield name, animal, row


def _prepare(folder: Path, target: Path) -> None:
    noto, twemoji, fluent = (_fetch(folder, package) for package in PACKAGES)
    table = json.loads(_members(noto, "package/emoji.json")["emoji.json"])
    pictures = [_members(noto, "/img/google/64/"), _members(twemoji, "/img/twitter/64/"), _members(fluent, "/assets/")]
    rows = []
    for name, animal, row in _concepts(table):
        code = row["unified"].lower()
        files = (row["image"], row["image"], f"{code}.webp")
        short = (row["image"], row["image"], f"{code.replace('-fe0f', '')}.webp")
        found = [pictures[s].get(files[s]) or pictures[s].get(short[s]) for s in range(len(STYLES))]
        if all(found):
            rows += [(not animal, name, s, _on_white(data)) for s, data in enumerate(found) if data]
    names = sorted({(other, name) for other, name, _, _ in rows})
    index = {key: i for i, key in enumerate(names)}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        target,
        images=np.stack([picture for *_, picture in rows]),
        concept=np.array([index[other, name] for other, name, _, _ in rows]),
        style=np.array([s for _, _, s, _ in rows]),
        names=json.dumps([name for _, name in names]),
        num_animals=sum(not other for other, _ in names),
    )


def to_float(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 pictures as floats in [0, 1]."""
    return images.float() / 255


def augment(
    images: Float[Tensor, "b 3 h w"], generator: torch.Generator, strength: float = 1.0
) -> Float[Tensor, "b 3 h w"]:
    """Random flip, rotation, scale and shift on a white ground; at strength 1: 8 degrees, 0.82-1.02, 5%."""
    n = len(images)
    uniform = lambda low, high: low + (high - low) * torch.rand(n, generator=generator)  # noqa: E731
    angle = uniform(-8, 8) * strength * torch.pi / 180
    scale = 1 / (1 + uniform(-0.18, 0.02) * strength)
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = torch.stack([uniform(-0.1, 0.1), uniform(-0.1, 0.1)], 1) * strength
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    rotation = torch.stack([torch.stack([cos * flip, -sin], 1), torch.stack([sin * flip, cos], 1)], 1)
    grid = F.affine_grid(torch.cat([rotation, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    ink = F.grid_sample(1 - images, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return (1 - ink).clamp(0, 1)
