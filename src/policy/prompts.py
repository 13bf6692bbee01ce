"""Prompts as a network is told of them: computed once, kept in memory, and on disk where a folder is named."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from src.errors import UserError
from src.files import make_folder, user_path, write_bytes
from src.types import Conditioning

TEXT_CACHE = 1024  # prompts whose states are kept on the device; 243 MB of Stable Diffusion 1's
TEXT_BYTES = 2**30  # which they may take


class PromptStates:
    """Each distinct prompt is encoded once, unless many others came in between.

    Args:
        encode: of one prompt: its states, and what else there is.
        folder: where they are kept from run to run; null for nowhere.
        identity: of what encodes them; another one has files of its own.
    """

    def __init__(self, encode: Callable[[str], tuple[Tensor, ...]], folder: str | None = None, identity: str = ""):
        self._encode = encode
        self._folder = user_path(folder) / hashlib.sha256(identity.encode()).hexdigest()[:16] if folder else None
        self.kept: dict[str, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], device: torch.device) -> Conditioning:
        distinct = list(dict.fromkeys(prompts))
        for prompt in distinct:
            if prompt not in self.kept:
                # by itself: in a batch its states would depend, in their last bits, on what else happened to be new
                self.kept[prompt] = self._read(prompt, device) or self._computed(prompt)
        columns = zip(*(self.kept[prompt] for prompt in distinct), strict=True)
        tables = [torch.stack(column).to(device) for column in columns]
        place = {prompt: k for k, prompt in enumerate(distinct)}
        which = torch.tensor([place[prompt] for prompt in prompts], device=tables[0].device)
        for prompt in distinct:
            self.kept[prompt] = self.kept.pop(prompt)  # the last to go
        while len(self.kept) > TEXT_CACHE or (len(self.kept) > 1 and self._bytes() > TEXT_BYTES):
            del self.kept[next(iter(self.kept))]
        return Conditioning(tables, which)

    def missing(self, prompts: Sequence[str]) -> bool:
        """Whether an encoder is needed for some of them."""
        return any(prompt not in self.kept and not self._has(prompt) for prompt in prompts)

    def _bytes(self) -> int:
        first = next(iter(self.kept.values()))
        return len(self.kept) * sum(each.nbytes for each in first)

    def _file(self, prompt: str) -> Path | None:
        return self._folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors" if self._folder else None

    def _has(self, prompt: str) -> bool:
        file = self._file(prompt)
        return file is not None and file.is_file()

    def _read(self, prompt: str, device: torch.device) -> tuple[Tensor, ...] | None:
        file = self._file(prompt)
        if file is None or not file.is_file():
            return None
        try:
            found = load_file(file)
        except (SafetensorError, OSError):
            return None  # it is computed anew, and written
        return tuple(found[str(k)].float().to(device) for k in range(len(found)))

    def _computed(self, prompt: str) -> tuple[Tensor, ...]:
        states = self._encode(prompt)
        if (file := self._file(prompt)) is not None:
            make_folder(file.parent, "policy.prompt_cache=")
            try:
                write_bytes(file, save({str(k): smallest(each) for k, each in enumerate(states)}))
            except OSError as error:
                raise UserError(f"policy.prompt_cache: {file} could not be written ({error}).") from error
        return states


def smallest(states: Tensor) -> Tensor:
    """In half the room, where no bit of it is lost, as of an encoder in bfloat16."""
    half = states.to(torch.bfloat16)
    return (half if torch.equal(half.float(), states) else states).contiguous().cpu()


def identity_of(path: str, **options: object) -> str:
    """What a pipeline's prompt states depend on: its path, the files of its encoders, and options."""
    files = sorted(user_path(path).glob("t*/*")) if user_path(path).is_dir() else []
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([path, stamps, options], default=str, sort_keys=True)
