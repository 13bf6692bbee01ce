"""Prompt sets, and the batches of prompts that iterations sample from."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from src.errors import UserError
from src.files import read_json, read_text, user_path
from src.hub import fetch_file
from src.learner import Learner
from src.rewards.base import RewardModel
from src.seeding import PROMPT_STREAM, generator_of

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
    places: dict[str, str] = field(default_factory=dict)  # prompt -> where it was read, for messages


def check_prompts(judges: Iterable[RewardModel], prompts: Sequence[str], places: Mapping[str, str]) -> None:
    """Raises UserError, with the place, on a prompt that one of the judges cannot score."""
    for judge in judges:
        for prompt in prompts:
            try:
                judge.check_prompts([prompt])
            except UserError as error:
                raise UserError(f"{places[prompt]}: {error}" if prompt in places else str(error)) from error


def simple_animals() -> PromptSets:
    """The 45 animals of DDPO and TDPO; held out: thirty others."""
    return PromptSets(list(SIMPLE_ANIMALS), list(HELD_OUT_ANIMALS))


def prompts_from_file(path: str, held_out_path: str | None = None) -> PromptSets:
    """One prompt a line, in UTF-8; empty lines are skipped. Raises UserError if there is none, or one is in both files.

    Lines end with line breaks only: what else Unicode counts among them is part of a prompt.

    Args:
        path: the file.
        held_out_path: of prompts that no run trains on; null for none.
    """
    train = _lines(path, "path")
    held_out = _lines(held_out_path, "held_out_path") if held_out_path else []
    places = dict(reversed(train + held_out))
    sets = PromptSets([prompt for prompt, _ in train], [prompt for prompt, _ in held_out], places)
    both = set(sets.train) & set(sets.held_out)
    if both:
        raise UserError(f"prompts.held_out_path={held_out_path} holds {min(both)!r}, which is trained on: take it out.")
    return sets


def hpd(
    path: str = "zhwang/HPDv2",
    style: Literal["anime", "concept-art", "paintings", "photo", "all"] = "photo",
    revision: str | None = None,
    held_out: int = 50,
    limit: int | None = None,
) -> PromptSets:
    """The benchmark prompts of the Human Preference Dataset v2 (Wu et al. 2023): 800 of each style.

    Args:
        path: hub id of the data set, a folder that holds its benchmark/STYLE.json, or one such file, a list of strings.
        style: one of four, or `all`.
        revision: commit of the hub's.
        held_out: how many of them, the last, no run trains on.
        limit: how many of the others to train on; null for all.
    """
    styles = ("anime", "concept-art", "paintings", "photo") if style == "all" else (style,)
    contents: list[list[str]] = []
    for name in styles[:1] if user_path(path).is_file() else styles:
        file = fetch_file(path, "prompts.path", f"benchmark/{name}.json", revision, kind="dataset")
        content = read_json(file)
        if not isinstance(content, list) or not all(isinstance(prompt, str) for prompt in content):
            raise UserError(f"prompts.path={file}: it must hold a list of strings; name another file.")
        contents.append(content)
    # style by style in turn, so that what is held out, and what a limit leaves, is of all of them
    mixed = [prompt for several in itertools.zip_longest(*contents) for prompt in several if prompt is not None]
    return _split(mixed, held_out, limit, path)


def prompts_from_parquet(
    path: str,
    filename: str | None = None,
    column: str = "caption",
    revision: str | None = None,
    held_out: int = 50,
    limit: int | None = None,
) -> PromptSets:
    """The distinct texts of one column, in order of their first row, as in Pick-a-Pic (Kirstain et al. 2023).

    Args:
        path: a parquet file, or the folder or hub id of a data set.
        filename: of the file in the latter.
        column: that holds the prompts.
        revision: commit of the hub's.
        held_out: how many of them, the last, no run trains on.
        limit: how many of the others to train on; null for all.
    """
    try:
        import duckdb
    except ImportError as error:
        raise UserError('prompts: parquet files are read by duckdb: pip install "overopt[parquet]".') from error
    file = fetch_file(path, "prompts.path", filename or path, revision, kind="dataset")
    try:
        table = duckdb.connect().read_parquet(str(file))
        if column not in table.columns:
            known = ", ".join(table.columns)
            raise UserError(f"prompts.column={column} is not in {file}: choose from {known}.")
        texts = [row[0] for row in table.select(duckdb.ColumnExpression(column)).fetchall()]
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"prompts.path={file}: no readable parquet file ({reason}); name another.") from error
    return _split([str(text).strip() for text in texts if text is not None], held_out, limit, path)


def _split(prompts: Sequence[str], held_out: int, limit: int | None, path: str) -> PromptSets:
    """Distinct prompts: the last `held_out` apart, the first `limit` of the others to train on."""
    distinct = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    for prompt in distinct:
        if any("\ud800" <= sign <= "\udfff" for sign in prompt):  # which no tokenizer takes
            raise UserError(f"prompts.path={path}: {prompt!a} holds half a sign of UTF-16: take it out.")
    train = distinct[: max(0, len(distinct) - held_out)][:limit]
    if held_out < 0 or not train:
        raise UserError(
            f"prompts.held_out={held_out} and prompts.limit={limit} leave none of the {len(distinct)} prompts of "
            f"{path} to train on: lower the one or raise the other."
        )
    return PromptSets(train, distinct[len(distinct) - held_out :])


def _lines(path: str, option: str) -> list[tuple[str, str]]:
    """The prompts of a file, each with its place."""
    file = user_path(path)
    if not file.is_file():
        raise UserError(f"prompts.{option}={path}: no such file.")
    text = read_text(file, f"prompts.{option}=")
    if "\0" in text:
        raise UserError(f"prompts.{option}={path} holds zero bytes: if it is in UTF-16, save it as UTF-8.")
    lines = [line.replace("\ufeff", "").strip() for line in text.split("\n")]  # marks that files joined together have
    prompts = [(line, f"prompts.{option}={path}, line {k}") for k, line in enumerate(lines, 1) if line]
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
        """One prompt a sample, those of a group side by side; a function of seed and iteration."""
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
        assert self.trainer is not None and isinstance(self.trainer.lightning_module, Learner)
        self.batches.start = self.trainer.lightning_module.iteration
        return DataLoader(self.batches, batch_size=None)
