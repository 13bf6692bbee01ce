"""Prompt sets, and the batches of prompts that iterations sample from."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from src.errors import UserError
from src.seeding import generator_of

PROMPT_STREAM = 1 << 22  # keeps the draw of prompts apart from those of samples

SIMPLE_ANIMALS = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion",
    "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale",
    "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee", "pig",
    "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)  # fmt: skip


HELD_OUT_ANIMALS = (
    "badger", "beaver", "bison", "boar", "crab", "crocodile", "donkey", "dove", "eagle", "elephant", "flamingo",
    "giraffe", "hamster", "hippopotamus", "jellyfish", "koala", "ladybug", "leopard", "lobster", "moose", "octopus",
    "otter", "owl", "panda", "parrot", "peacock", "penguin", "rhinoceros", "scorpion", "swan",
)  # fmt: skip


@dataclass(frozen=True)
class PromptSets:
    """What a run trains on, and what it is also judged by."""

    train: list[str]
    held_out: list[str]  # no run trains on them; may be empty


def simple_animals() -> PromptSets:
    """The 45 animals of DDPO and TDPO; held out: thirty others."""
    return PromptSets(list(SIMPLE_ANIMALS), list(HELD_OUT_ANIMALS))


def prompts_from_file(path: str, held_out_path: str | None = None) -> PromptSets:
    """One prompt a line; empty lines are skipped. Raises UserError if there is none, or one is in both files."""
    sets = PromptSets(_lines(path, "path"), _lines(held_out_path, "held_out_path") if held_out_path else [])
    both = set(sets.train) & set(sets.held_out)
    if both:
        raise UserError(f"prompts.held_out_path={held_out_path} holds {min(both)!r}, which is trained on: take it out.")
    return sets


def _lines(path: str, option: str) -> list[str]:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"prompts.{option}={path}: no such file.")
    prompts = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"prompts.{option}={path} holds no prompt; write one a line.")
    return prompts


class PromptBatches(IterableDataset):
    """The prompts of each iteration, a function of (seed, iteration): one prompt a sample.

    Args:
        prompts: the prompt set.
        samples: samples an iteration.
        samples_per_prompt: each drawn prompt is used that many times; 1 draws a prompt for every sample (DDPO).
    """

    def __init__(self, prompts: Sequence[str], samples: int, samples_per_prompt: int, seed: int, start: int = 0):
        super().__init__()
        self.prompts, self.samples, self.samples_per_prompt = list(prompts), samples, samples_per_prompt
        self.seed, self.start = seed, start
        if not self.prompts:
            raise UserError("the prompt set is empty; give at least one prompt.")
        if samples % samples_per_prompt:
            raise UserError(
                f"samples_per_iteration={samples} is not a multiple of samples_per_prompt={samples_per_prompt}."
            )

    def batch(self, iteration: int) -> list[str]:
        draws = self.samples // self.samples_per_prompt
        rng = generator_of(self.seed, iteration, PROMPT_STREAM)
        # without replacement as far as the set goes, so that an iteration sees as many prompts as it can
        rounds = [torch.randperm(len(self.prompts), generator=rng) for _ in range(-(-draws // len(self.prompts)))]
        chosen = torch.cat(rounds)[:draws]
        return [self.prompts[k] for k in chosen.tolist() for _ in range(self.samples_per_prompt)]

    def __iter__(self) -> Iterator[list[str]]:
        return (self.batch(iteration) for iteration in itertools.count(self.start))


class PromptData(LightningDataModule):
    """Feeds the finetuner from wherever it stands, so that a resumed run sees the prompts it would have seen."""

    def __init__(self, prompts: Sequence[str], samples: int, samples_per_prompt: int, seed: int):
        super().__init__()
        self.batches = PromptBatches(prompts, samples, samples_per_prompt, seed)

    def train_dataloader(self) -> DataLoader:
        self.batches.start = self.trainer.lightning_module.iteration  # type: ignore[union-attr]
        return DataLoader(self.batches, batch_size=None)
