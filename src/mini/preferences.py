"""Preference data of the miniature world: pictures of the base model at many qualities, judged by gold.

Two pictures of one prompt by one good generator are nearly tied. So, as in real preference sets, they come from
generators of different quality: steps, guidance, eta, prompts mixed with another animal or with nothing, and mild
corruptions. Comparisons are labelled by Bradley-Terry on gold's utility, with label noise. Everything is a function of
the seed: nothing is shipped, a split is made when it is first asked for (minutes) and kept.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from jaxtyping import Bool, Float, Int, UInt8
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from src.errors import UserError
from src.files import make_folder
from src.mini.corruptions import CORRUPTIONS, corrupt
from src.mini.data import augment, to_float
from src.mini.gold import GoldAnnotator
from src.progress import track
from src.rewards.base import Comparisons, Ratings
from src.seeding import generator_of, seed_of

SPLITS = ("test", "hps", "pickscore", "imagereward", "aesthetic", "hps_b", "hps_c")  # pictures in one are in no other
STEPS, GUIDANCE, ETA = (3, 4, 6, 10, 20), (1.0, 1.0, 2.0, 4.0), (1.0, 1.0, 0.3)
BATCH, BASE_SHARE, MIXED_SHARE, CORRUPTED_SHARE = 64, 0.5, 0.2, 0.2
TEST_PICTURES = 4096
VERSION = 4  # of the recipe above


@dataclass(frozen=True)
class Pool:
    """Judged pictures of one split."""

    images: UInt8[Tensor, "n 3 64 64"]
    concept: Int[Tensor, " n"]  # index into names
    utility: Float[Tensor, " n"]  # gold's U for the concept, nats
    soundness: Float[Tensor, " n"]  # gold's log-odds that it is a picture of some animal, nats
    untouched: Bool[Tensor, " n"]  # by the base at its default sampler
    names: list[str]

    def prompts(self, index: Int[Tensor, " b"]) -> list[str]:
        """The names of the concepts that these pictures were made for."""
        return [self.names[c] for c in self.concept[index].tolist()]


@torch.no_grad()
def generate(pipeline: StableDiffusionPipeline, names: list[str], seed: int, batches: int, steps: int) -> Iterator:
    """Yields (pictures uint8, concepts, untouched) of 64 samples each; about half of the batches are untouched."""
    pipeline.set_progress_bar_config(disable=True)
    states, _ = pipeline.encode_prompt([*names, ""], pipeline.device, 1, do_classifier_free_guidance=False)
    for k in range(batches):
        rng = generator_of(seed, k)
        concept = torch.randint(len(names), (BATCH,), generator=rng)
        text = states[concept]
        call = {"num_inference_steps": steps, "guidance_scale": 1.0, "eta": 1.0}
        untouched = torch.rand((), generator=rng).item() < BASE_SHARE
        if not untouched:
            pick = lambda options: options[int(torch.randint(len(options), (), generator=rng))]  # noqa: B023, E731
            call = {"num_inference_steps": pick(STEPS), "guidance_scale": pick(GUIDANCE), "eta": pick(ETA)}
            share = 0.7 * torch.rand(BATCH, generator=rng) * (torch.rand(BATCH, generator=rng) < MIXED_SHARE)
            other = torch.randint(len(names) + 1, (BATCH,), generator=rng)
            text = torch.lerp(text, states[other], share[:, None, None])
        negative = states[-1:].expand_as(text) if call["guidance_scale"] > 1 else None
        images = pipeline(
            prompt_embeds=text, negative_prompt_embeds=negative, generator=rng, output_type="pt", **call
        ).images.float()
        if not untouched:
            severity = 0.5 * torch.rand(BATCH, generator=rng) * (torch.rand(BATCH, generator=rng) < CORRUPTED_SHARE)
            kinds = list(CORRUPTIONS)
            chosen = torch.randint(len(kinds), (BATCH,), generator=rng).tolist()
            images = corrupt(images, severity, [kinds[i] for i in chosen], rng)
        yield (images * 255).round().byte(), concept, untouched


def load_pool(base: str, gold: str, split: str, pictures: int, num_steps: int, folder: str, seed: int = 0) -> Pool:
    """The pool of a split, made where it is not there yet. Raises UserError on an unknown split."""
    if split not in SPLITS:
        raise UserError(f"split={split} is not one of {', '.join(SPLITS)}.")
    annotator = GoldAnnotator(gold)
    batches = -(-pictures // BATCH)
    recipe = [VERSION, num_steps, seed, _fingerprint(base), _fingerprint(gold), batches]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    path = Path(folder) / f"{split}-{key}.npz"
    if not path.exists():
        make_folder(path.parent, "reward_training.data.folder=")
        print(f"making {batches * BATCH} judged pictures of split {split} (once; kept in {path})", flush=True)
        _make_pool(annotator, base, seed_of(seed, SPLITS.index(split)), batches, num_steps, path)
    with np.load(path) as arrays:
        parts = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return Pool(**parts, names=annotator.names)


def _make_pool(annotator: GoldAnnotator, base: str, seed: int, batches: int, num_steps: int, path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    rows: dict[str, list[Tensor]] = {name: [] for name in ("images", "concept", "utility", "soundness", "untouched")}
    made = generate(pipeline, annotator.names, seed, batches, num_steps)
    for images, concept, untouched in track(made, "judged pictures", total=batches):
        utility, soundness = annotator.judge(to_float(images), concept)
        flag = torch.full((len(images),), untouched)
        for name, part in zip(rows, (images, concept, utility, soundness, flag), strict=True):
            rows[name].append(part)
    arrays: dict[str, Any] = {name: torch.cat(parts).numpy() for name, parts in rows.items()}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def _fingerprint(folder: str) -> str:
    """Of all weights below a folder."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def pairs_of(pool: Pool, seed: int, keep: Bool[Tensor, " n"] | None = None) -> Int[Tensor, "m 2"]:
    """Distinct pairs of pictures of one concept, in random order; each picture meets at most six others."""
    rng = generator_of(seed, 0)
    found = [torch.zeros(0, 2, dtype=torch.long)]
    for concept in range(len(pool.names)):
        own = pool.concept == concept
        index = torch.nonzero(own if keep is None else own & keep).flatten()
        index = index[torch.randperm(len(index), generator=rng)]
        for step in (1, 2, 3):
            if len(index) >= 2 * step:
                partners = torch.stack([index, index.roll(step)], 1)
                found.append(partners[:step] if len(index) == 2 * step else partners)  # half way round, pairs repeat
    every = torch.cat(found)
    every = every[torch.randperm(len(every), generator=rng)]
    flip = torch.rand(len(every), generator=rng) < 0.5
    return torch.where(flip[:, None], every.flip(1), every)


def bradley_terry_labels(
    difference: Float[Tensor, " n"], temperature: float, label_noise: float, seed: int
) -> Float[Tensor, " n"]:
    """1 where the first is preferred: drawn with probability sigmoid(dU / temperature), then flipped at random."""
    rng = generator_of(seed, 1)
    preferred = torch.rand(len(difference), generator=rng) < torch.sigmoid(difference / temperature)
    flipped = torch.rand(len(difference), generator=rng) < label_noise
    return (preferred ^ flipped).float()


class Epochs(IterableDataset):
    """Shuffled batches, another order every time it is gone through, as a function of (seed, epoch)."""

    def __init__(self, rows: int, batch_size: int, seed: int, make):
        super().__init__()
        self.rows, self.batch_size, self.seed, self.make, self.epoch = rows, batch_size, seed, make, 0

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Comparisons | Ratings]:
        order = torch.randperm(self.rows, generator=generator_of(self.seed, 2, self.epoch))
        self.epoch += 1
        for index in order.split(self.batch_size):
            yield self.make(index)


class JudgedData(LightningDataModule):
    """Rows made from a pool of judged pictures; the first tenth is held out for early stopping.

    Subclasses set `rows` and define `make`.

    Args:
        base, gold: folders of the base pipeline and of the annotator.
        split: whose pictures; each proxy has its own, so that two of them share none.
        pictures: size of the split's pool.
        num_steps: of the default sampler.
        folder: where pools are kept.
        augmentation: strength of src.mini.data.augment on the pictures of a training batch.
    """

    rows: int

    def __init__(
        self,
        base: str,
        gold: str,
        split: str,
        pictures: int,
        num_steps: int,
        folder: str,
        augmentation: float,
        seed: int,
        batch_size: int,
    ):
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1.")
        self.augmentation, self.seed, self.batch_size = augmentation, seed, batch_size
        self.pool = load_pool(base, gold, split, pictures, num_steps, folder)
        self.test_pool = load_pool(base, gold, "test", min(pictures, TEST_PICTURES), num_steps, folder)

    def make(self, rows: Int[Tensor, " b"], rng: torch.Generator | None = None) -> Comparisons | Ratings:
        """The batch of these rows, augmented where a generator is given."""
        raise NotImplementedError(f"{type(self).__name__} does not define make")

    def pictures(self, index: Int[Tensor, " b"], rng: torch.Generator | None) -> Float[Tensor, "b 3 h w"]:
        """In [0, 1]; augmented where there is a generator to draw from."""
        images = to_float(self.pool.images[index])
        return images if rng is None else augment(images, rng, self.augmentation)

    def train_dataloader(self) -> DataLoader:
        rng, held_out = generator_of(self.seed, 3), self.rows // 10
        make = lambda index: self.make(index + held_out, rng)  # noqa: E731
        return DataLoader(Epochs(self.rows - held_out, self.batch_size, self.seed, make), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        batches = [self.make(index) for index in torch.arange(self.rows // 10).split(self.batch_size)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class PreferenceData(JudgedData):
    """Comparisons of one split; a tenth of them held out for early stopping.

    Args, beside those of JudgedData:
        pairs: comparisons, the held-out tenth included.
        temperature: of Bradley-Terry, nats of U. label_noise: share of labels flipped.
    """

    def __init__(
        self,
        base: str,
        gold: str,
        split: str,
        pairs: int,
        pictures: int,
        num_steps: int,
        temperature: float,
        label_noise: float,
        augmentation: float,
        folder: str,
        seed: int,
        batch_size: int,
    ):
        if pairs < 20:
            raise UserError(f"pairs={pairs} must be at least 20.")
        super().__init__(base, gold, split, pictures, num_steps, folder, augmentation, seed, batch_size)
        self.index = pairs_of(self.pool, seed)[:pairs]
        if len(self.index) < pairs:
            raise UserError(f"pairs={pairs} is more than the {len(self.index)} that pictures={pictures} give.")
        difference = self.pool.utility[self.index[:, 0]] - self.pool.utility[self.index[:, 1]]
        self.labels = bradley_terry_labels(difference, temperature, label_noise, seed)
        self.rows = pairs

    def make(self, rows: Int[Tensor, " b"], rng: torch.Generator | None = None) -> Comparisons:
        first, second = self.index[rows].unbind(1)
        prompts = self.pool.prompts(first)
        return Comparisons(self.pictures(first, rng), self.pictures(second, rng), prompts, self.labels[rows])


class RatingData(JudgedData):
    """Ratings of single pictures, without a prompt: gold's soundness with noise, in standard deviations of the pool."""

    def __init__(
        self,
        base: str,
        gold: str,
        split: str,
        pictures: int,
        num_steps: int,
        rating_noise: float,
        augmentation: float,
        folder: str,
        seed: int,
        batch_size: int,
    ):
        super().__init__(base, gold, split, pictures, num_steps, folder, augmentation, seed, batch_size)
        soundness = self.pool.soundness
        noise = torch.randn(len(soundness), generator=generator_of(seed, 1))
        self.ratings = (soundness - soundness.mean()) / soundness.std() + rating_noise * noise
        self.rows = len(self.ratings)

    def make(self, rows: Int[Tensor, " b"], rng: torch.Generator | None = None) -> Ratings:
        return Ratings(self.pictures(rows, rng), self.ratings[rows])
