"""Prompts that are longer than what reads them: text encoders take so many tokens, and drop the rest silently."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.utilities import rank_zero_only


@runtime_checkable
class Reader(Protocol):
    """A policy, or a reward model."""

    @property
    def max_tokens(self) -> int | None:
        """Of a prompt that it reads; null for no end."""
        ...

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts whose end it does not see."""
        ...


def longer_than(max_tokens: int, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts of more tokens than that, those for the beginning and the end counted."""
    if not prompts:
        return []
    ids = tokenizer(list(prompts), verbose=False).input_ids
    return [prompt for prompt, each in zip(prompts, ids, strict=True) if len(each) > max_tokens]


@rank_zero_only
def warn_of_cut(readers: Mapping[str, Reader], prompts: Sequence[str]) -> None:
    """One warning, with how many prompts each reader does not see the end of; none where each sees all."""
    prompts = list(dict.fromkeys(prompts))
    cut = {name: (len(reader.too_long(prompts)), reader.max_tokens) for name, reader in readers.items()}
    told = [f"{name} cuts {n} at {limit} tokens" for name, (n, limit) in cut.items() if n]
    if told:
        print(
            f"warning: of {len(prompts)} prompts, {', '.join(told)}: what comes after is not read.",
            file=sys.stderr,
            flush=True,
        )
