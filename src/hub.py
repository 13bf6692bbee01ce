"""Where weights come from: a local folder, or a repository of the Hugging Face hub.

The hub's cache, HF_HUB_OFFLINE and the usual login (HF_TOKEN or `hf auth login`) are respected. Whatever goes wrong is
a UserError of one sentence.
"""

import json
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
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

from src.errors import UserError, first_line
from src.files import user_path

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TOKENS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
MOMENTS = ("image_mean", "image_std")  # of what an image tower takes, in preprocessor_config.json
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
        needed: names of files.
        also: patterns of names.
        revision: commit, tag or branch of the repository; a folder has none.
        kind: of the repository.
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


def weight_files(stem: str, variant: str | None) -> list[str]:
    """The names that a model's safetensors may have in its folder: whole, or an index and its shards."""
    if not variant:
        return [f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}-*-of-*.safetensors"]
    shards = (f"{stem}.{variant}-*-of-*.safetensors", f"{stem}-*-of-*.{variant}.safetensors")
    return [f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json", *shards]


def require_weights(folder: Path, stem: str, variant: str | None, option: str, revision: str | None = None) -> None:
    """Raises UserError unless a model's folder holds its safetensors, whole or in shards."""
    whole, index, *_ = weight_files(stem, variant)
    if (folder / whole).is_file():
        return
    name = f"{folder.name}/{whole}"
    if not (folder / index).is_file():
        raise UserError(f"{option}: {_why_missing(folder.parent, name, revision)}")
    for shard in sorted(set(read_json(folder / index, option).get("weight_map", {}).values())):
        require(folder.parent, [f"{folder.name}/{shard}"], option, revision)


def read_json(file: Path, option: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """A file of a model's or pipeline's folder. Raises UserError unless it holds a JSON object with the keys needed."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: {file} cannot be read ({first_line(error)}); fetch it anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {file} holds no JSON object; fetch it anew.")
    if missing := sorted(set(needed) - set(content)):
        raise UserError(
            f"{option}: its {file.name} is of another kind of model ({missing[0]} is missing); "
            "give a folder of this one."
        )
    return content


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
        raise UserError(
            f"{option}={path}: the repository has no revision {revision}; name one of its own, or null for its newest "
            "(suite.revision=null)."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{option}={path}: neither a folder here nor a repository that this login can see on the hub; correct it, "
            "or log in with `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(f"{option}={path}: {_why_unreachable()}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{option}={path}: it could not be fetched from the hub ({first_line(error)}); try again."
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
        stem = Path(name).name.split(".")[0]
        variants = sorted(file.suffixes[-2][1:] for file in (folder / name).parent.glob(f"{stem}.*.safetensors"))
        if variants:
            return f"{name} is missing there, but not its variant {variants[0]}: choose policy.variant={variants[0]}."
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
        if "Unsupported" in str(error):  # what torch says of a pickle that asks for more
            raise UserError(
                f"{option}: {file} is not a checkpoint of plain tensors: it holds more, which could run any code, and "
                "was not opened; ask for safetensors."
            ) from error
        reason = first_line(error).split(". ")[0]
        raise UserError(f"{option}: {file} is not a checkpoint of plain tensors ({reason}); fetch it anew.") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{option}: {file} holds a {type(content).__name__} where a state dict belongs; give another file."
        )
    return content


def load_strictly(
    model_class: Any,
    source: Path | Mapping[str, Tensor],
    option: str,
    config: Any = None,
    ignored: Sequence[str] = (),
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A frozen transformers model whose every tensor comes from `source`, and which uses all of its tensors.

    Args:
        model_class: of transformers.
        source: folder with config.json and model.safetensors, or a state dict (then with a `config`).
        option: what error messages call it.
        config: of the architecture; None for the folder's.
        ignored: ends of keys that may be left over, such as tables that are computed nowadays.
        variant: of the folder's weight files.
        dtype: of the weights.
    """
    folder, state = (source, None) if isinstance(source, Path) else (None, dict(source))
    options = {"config": config} if config is not None else {}
    if folder is not None and config is None:
        read_json(folder / "config.json", option)  # transformers tells of a broken one in a way of its own each time
    try:
        model, report = model_class.from_pretrained(
            folder,
            **options,
            state_dict=state,
            variant=variant,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below
        )
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{option}: its weights cannot be read ({first_line(error)}); fetch them anew.") from error
    for fault, word in (("missing_keys", "missing"), ("mismatched_keys", "shape"), ("unexpected_keys", "unknown")):
        keys = sorted(key if isinstance(key, str) else key[0] for key in report[fault])
        keys = [key for key in keys if not key.endswith(tuple(ignored))]
        if keys:
            count = f", and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{option}: the weights are of another architecture ({word}: {keys[0]}{count}).")
    return model.requires_grad_(False).eval()


def fill(module: torch.nn.Module, file: Path, option: str) -> None:
    """Gives a module the tensors of a safetensors file, in the module's precision.

    Raises UserError unless they are exactly its own.
    """
    try:
        module.load_state_dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{option}: {file.name} cannot be read ({first_line(error)}); fetch it anew.") from error
    except RuntimeError as error:  # torch's: a heading, then a line for each fault
        faults = [line.strip() for line in str(error).splitlines()[1:]] or [first_line(error)]
        raise UserError(f"{option}: the weights are of another architecture ({faults[0][:200]}).") from error


def load_tokenizer(tokenizer_class: Any, folder: Path, option: str) -> Any:
    """The tokenizer of a folder. Raises UserError on broken files, and on none: transformers would make one up."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise UserError(f"{option}={folder}: no tokenizer there (tokenizer.json is missing); give a folder with one.")
    files = [name for name in TOKENS if (folder / name).is_file()]
    for name in files:
        read_json(folder / name, f"{option}={folder}")
    try:
        return tokenizer_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no other
        raise UserError(
            f"{option}={folder}: its tokenizer cannot be loaded from {', '.join(files)} "
            f"({type(error).__name__}: {first_line(error)}); fetch it anew."
        ) from error
