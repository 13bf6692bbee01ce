"""Where weights come from: a local folder, or a repository of the Hugging Face hub.

The hub's cache, HF_HUB_OFFLINE and the usual login (HF_TOKEN or `hf auth login`) are respected. Whatever goes wrong is
a UserError of one sentence.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from src.errors import UserError
from src.files import user_path

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")


def fetch(
    path: str,
    option: str,
    needed: Sequence[str],
    also: Sequence[str] = (),
    revision: str | None = None,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """The local folder that holds the files `needed`, and, where there are such, those of the patterns `also`.

    Nothing else of a repository is downloaded.

    Args:
        path: a folder, or a hub id such as `CompVis/stable-diffusion-v1-4`; a folder of that name comes first.
        option: what error messages call it.
        revision: commit, tag or branch of the repository; a folder has none.
    """
    folder = user_path(path)
    if not folder.exists():
        if not REPOSITORY.fullmatch(path):
            content = f" with {', '.join(needed)} in it" if needed else ""
            raise UserError(f"{option}={path}: no such folder; give one{content}, or a hub id such as owner/name.")
        folder = _download(path, option, [*needed, *also], revision, kind)
    require(folder, needed, f"{option}={path}", revision)
    return folder


def require(folder: Path, needed: Sequence[str], option: str, revision: str | None = None) -> None:
    """Raises UserError unless the folder holds these files."""
    for name in needed:
        if not (folder / name).is_file():
            raise UserError(f"{option}: {_why_missing(folder, name, revision)}")


def fetch_file(
    path: str,
    option: str,
    filename: str,
    revision: str | None = None,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """One file: `path` itself, or `filename` in the folder or repository `path`."""
    if user_path(path).is_file():
        return user_path(path)
    return fetch(path, option, [filename], revision=revision, kind=kind) / filename


def _download(path: str, option: str, patterns: list[str], revision: str | None, kind: str) -> Path:
    try:
        return Path(snapshot_download(path, repo_type=kind, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise UserError(
            f"{option}={path}: its authors want consent to their licence first: give it on the model's page of the "
            "hub, then log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{option}={path}: the repository has no revision {revision}; choose another.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{option}={path}: neither a folder here nor a repository that this login can see on the hub; correct it, "
            "or log in with `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(f"{option}={path}: {_why_unreachable()}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{option}={path}: it could not be fetched from the hub ({_first_line(error)}); try again."
        ) from error


def _why_unreachable() -> str:
    remedy = "or give a local folder that holds the files."
    if constants.HF_HUB_OFFLINE:
        return f"not all of it is in the hub's cache, and HF_HUB_OFFLINE forbids fetching it: unset that once, {remedy}"
    return f"neither a folder here nor in the hub's cache, and the hub cannot be reached: mend the network, {remedy}"


def _why_missing(folder: Path, name: str, revision: str | None) -> str:
    pickled = ""
    if name.endswith(".safetensors"):
        pickles = [file.name for file in sorted((folder / name).parent.glob("*")) if file.suffix in (".bin", ".pt")]
        if pickles:
            return (
                f"it has pickled weights alone ({pickles[0]}), which are not opened, as they can run any code: "
                f"convert them to {name} with save_pretrained."
            )
        pickled = " (and pickled weights are not opened)"
    if "snapshots" in folder.parts:  # of the hub's cache
        where = "the hub's cache" if constants.HF_HUB_OFFLINE else "the repository"
        return f"{name} is missing from {where} at revision {revision or 'main'}{pickled}; choose another one."
    return f"{name} is missing there{pickled}; give a complete folder, or a hub id."


def read_checkpoint(file: Path, option: str) -> dict[str, Any]:
    """A released PyTorch checkpoint, opened without running code of its own, on the CPU."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = _first_line(error).split(". ")[0]
        raise UserError(f"{option}: {file} is not a checkpoint of plain tensors ({reason}); fetch it anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {file} holds a {type(content).__name__} where a state dict belongs.")
    return content


def load_strictly(
    model_class: Any, source: Path | Mapping[str, Tensor], option: str, config: Any = None, ignored: Sequence[str] = ()
) -> Any:
    """A frozen transformers model in float32 whose every tensor comes from `source`, and which uses all of its tensors.

    Args:
        source: folder with config.json and model.safetensors, or a state dict (then with a `config`).
        ignored: ends of keys that may be left over, such as tables that are computed nowadays.
    """
    folder, state = (source, None) if isinstance(source, Path) else (None, dict(source))
    options = {"config": config} if config is not None else {}
    try:
        model, report = model_class.from_pretrained(
            folder,
            **options,
            state_dict=state,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below
        )
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{option}: its weights cannot be read ({_first_line(error)}); fetch them anew.") from error
    for fault, word in (("missing_keys", "missing"), ("mismatched_keys", "shape"), ("unexpected_keys", "unknown")):
        keys = sorted(key if isinstance(key, str) else key[0] for key in report[fault])
        keys = [key for key in keys if not key.endswith(tuple(ignored))]
        if keys:
            count = f", and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{option}: the weights are of another architecture ({word}: {keys[0]}{count}).")
    return model.requires_grad_(False).eval()


def read_tensors(file: Path, option: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError where it is none."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{option}: {file} is no readable safetensors file ({error}); fetch it anew.") from error


def fill(module: torch.nn.Module, tensors: Mapping[str, Tensor], option: str) -> None:
    """Gives a module these weights, all of them. Raises UserError where they are another's."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{option}: the weights are of another architecture ({reason} ...).") from error


def load_tokenizer(tokenizer_class: Any, folder: Path, option: str) -> Any:
    """The tokenizer of a folder. Raises UserError if there is none; transformers would make up an empty one."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise UserError(f"{option}={folder}: no tokenizer there (tokenizer.json is missing); give a folder with one.")
    return tokenizer_class.from_pretrained(folder, local_files_only=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
