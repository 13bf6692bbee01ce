"""Weights of others, recognised from the files alone: where they lie, what they are, and what they hold.

Full weights: a `unet/` or `transformer/` folder, a whole pipeline, a UNet's state dict in safetensors. LoRA: as
diffusers and peft write it, as older diffusers did (`to_q_lora.down`), in kohya's format. Folder layouts: runs of ours,
TRL's and ddpo-pytorch's checkpoints (LoRA file or `unet/` beside accelerate's state), flow_grpo's (`lora/`), those of
diffusers' scripts.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from src.errors import UserError, first_line
from src.files import near, user_path
from src.hub import REPOSITORY, fetch, read_checkpoint, read_json

Kind = Literal["full", "lora"]
State = dict[str, Tensor]

UNET = "diffusion_pytorch_model"
LORA = "pytorch_lora_weights"
ADAPTER = "adapter_model.safetensors"
NETWORKS = ("unet", "transformer")  # of a pipeline
PARTS = ("text_encoder", "vae")  # beside it
STATE_OF_TRAINING = ("optimizer", "scheduler", "random_states", "rng_state", "scaler", "sampler", "training_args")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_FILES = (
    *("model_index.json", "scheduler/*.json", "config.json", "adapter_config.json", ADAPTER, f"{LORA}.safetensors"),
    *(f"{UNET}*.safetensors*", "lora/*"),
    *(f"{network}/{name}" for network in NETWORKS for name in ("config.json", f"{UNET}*.safetensors*")),
    *(f"{part}/{name}" for part in PARTS for name in ("config.json", "*.safetensors")),
)
FITTING = (
    "give a run folder, a LoRA (safetensors of diffusers, peft or kohya), a unet/ or transformer/ folder, a pipeline "
    "folder or hub id, or a UNet's state dict in safetensors"
)
KOHYA, DIFFUSERS = "kohya's", "diffusers'"
WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}  # of text states


@dataclass(frozen=True)
class Weights:
    """Recognised, and not read yet."""

    path: str  # as it was given
    kind: Kind
    file: Path  # a folder of full weights in shards, or a file
    form: str  # in words
    pipeline: Path | None = None  # the folder that the UNet is a part of

    @property
    def option(self) -> str:
        """What error messages call them."""
        return f"weights={self.path}"


@dataclass(frozen=True)
class Adapter:
    """A LoRA of one module: up @ down * alpha / rank is added to its weight."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Inner width of its two matrices."""
        return self.down.shape[0]


# --------------------------------------------------------------------------------------------------------- recognition


def recognise(path: str) -> Weights:
    """What lies at a path, or in a repository of the hub. Raises UserError, which says what would fit."""
    place = user_path(path)
    if not place.exists():
        if not REPOSITORY.fullmatch(path):
            raise UserError(f"weights={path}: nothing lies there{near(path)}; {FITTING}.")
        place = fetch(path, "weights", [], HUB_FILES)
    found = in_file(path, place) if place.is_file() else in_folder(path, place)
    if found is None:
        raise UserError(f"weights={path}: {_why_none(place)}; {FITTING}.")
    return found


def in_folder(path: str, folder: Path) -> Weights | None:
    """The weights in a folder, or in what is inside it; None where there are none."""
    if (folder / ADAPTER).is_file():
        return Weights(path, "lora", folder / ADAPTER, "a LoRA in peft's format")
    for ending, form in ((".safetensors", "diffusers' format"), (".bin", "an older diffusers' format")):
        if (folder / f"{LORA}{ending}").is_file():
            return Weights(path, "lora", folder / f"{LORA}{ending}", f"a LoRA in {form}")
    if (folder / "model_index.json").is_file():
        network = next(filter(None, (in_folder(path, folder / name) for name in NETWORKS)), None)
        return network and Weights(path, "full", network.file, "a pipeline", folder)
    if list(folder.glob(f"{UNET}*.safetensors")):
        of = "a transformer's" if folder.name == "transformer" else "a UNet's"
        return Weights(path, "full", folder, f"{of} folder")
    for inside in (*(folder / network for network in NETWORKS), folder / "lora", *sorted((folder / "lora").glob("*/"))):
        found = in_folder(path, inside) if inside.is_dir() else None
        if found is not None:
            return found
    alone = list(folder.glob("*.safetensors"))
    return in_file(path, alone[0]) if len(alone) == 1 else None


def in_file(path: str, file: Path) -> Weights | None:
    """By the names of its tensors; a pickle is not opened, but for the LoRA that older diffusers wrote."""
    if file.name == f"{LORA}.bin":
        return Weights(path, "lora", file, "a LoRA in an older diffusers' format")
    if file.suffix in PICKLES:
        raise UserError(f"weights={path}: {_pickled(file)}.")
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as opened:
            keys = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights={path}: {file.name} cannot be read ({first_line(error)}); fetch it anew.") from error
    if any(re.search(r"lora|hada_|lokr_|oft_", key) for key in keys):
        kohya = any(key.startswith("lora_") for key in keys)
        return Weights(path, "lora", file, f"a LoRA in {KOHYA if kohya else DIFFUSERS} format")
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.")) for key in keys):
        raise UserError(
            f"weights={path}: {file.name} is a checkpoint in the original layout; convert it by "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) and give the folder."
        )
    return Weights(path, "full", file, "a UNet's state dict") if "conv_in.weight" in keys else None


def _pickled(file: Path) -> str:
    return (
        f"{file.name} is a pickle, which can run any code when it is opened, so it is not; ask for safetensors, or "
        "save the weights so yourself (save_pretrained) where you trust them"
    )


def _why_none(place: Path) -> str:
    if place.is_file():
        return f"{place.name} holds neither a UNet nor a LoRA"
    if (place / "config.yaml").is_file():
        return "that run has no weights yet (unet/, transformer/, lora/ or best/)"
    pickles = sorted(file for file in place.rglob("*") if file.suffix in PICKLES)
    known = [file for file in pickles if not file.name.startswith(STATE_OF_TRAINING)]
    return _pickled(known[0]) if known else "there are no weights in that folder"


# --------------------------------------------------------------------------------------------------------- full weights


def read_unet(weights: Weights) -> State:
    """A UNet's tensors in float32, of one file or of shards; of several variants the one without a name."""
    state: State = {}
    for file in _files_of_unet(weights):
        state |= _tensors(file, weights)
    return {key: value.float() for key, value in state.items()}


def shapes_of_unet(weights: Weights) -> State:
    """The same without their values, which are not read."""
    state: State = {}
    for file in _files_of_unet(weights):
        try:
            with safe_open(file, "pt") as opened:
                state |= {key: torch.empty(opened.get_slice(key).get_shape(), device="meta") for key in opened.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise UserError(_unreadable(file, weights, error)) from error
    return state


def _files_of_unet(weights: Weights) -> list[Path]:
    if not weights.file.is_dir():
        return [weights.file]
    every = sorted(weights.file.glob(f"{UNET}*.safetensors"))
    plain = [file for file in every if re.fullmatch(rf"{UNET}(-\d+-of-\d+)?\.safetensors", file.name)]
    variant = every[0].name.removeprefix(UNET).split(".")[1].split("-")[0]
    return plain or [file for file in every if file.name.removeprefix(UNET).startswith(f".{variant}")]


def check_finite(weights: Weights, state: Mapping[str, Tensor]) -> None:
    """Raises UserError on weights that are no numbers, such as those of a training run that blew up."""
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{weights.option}: {len(broken)} of its {len(state)} tensors hold NaN or infinity ({broken[0]}): training "
            "had blown up before they were saved; give an earlier checkpoint."
        )


def _unreadable(file: Path, weights: Weights, error: Exception) -> str:
    return f"{weights.option}: {file.name} cannot be read ({first_line(error)}); fetch it anew."


def _tensors(file: Path, weights: Weights) -> State:
    if file.suffix in PICKLES:
        return read_checkpoint(file, weights.option)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(_unreadable(file, weights, error)) from error


def check_unet(state: Mapping[str, Tensor], own: Mapping[str, Tensor], weights: Weights, base: str) -> None:
    """Raises UserError unless the tensors are those of the base's UNet, by name and shape."""
    faults = [
        *(f"{key} is missing" for key in own if key not in state),
        *(f"{key} is unknown" for key in state if key not in own),
        *(
            f"{key} is {list(state[key].shape)} and not {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
    ]
    if not faults:
        return
    widths = {_width(tensors) for tensors in (state, own)}
    inputs = [tensors["conv_in.weight"].shape[1] for tensors in (state, own) if "conv_in.weight" in tensors]
    cause = f"{faults[0]}, {len(faults)} such"
    if len(widths - {None}) == 2:
        cause = _other_width(_width(state), _width(own))
    elif len(set(inputs)) == 2:
        cause = f"it takes {inputs[0]} channels, and the base {inputs[1]}"
    raise UserError(
        f"{weights.option}: {weights.form} of another architecture than the base {base}: {cause}; give weights of that "
        "base, or their own base as suite.base=."
    )


def _width(state: Mapping[str, Tensor]) -> int | None:
    """Of the text states that the network's cross-attention takes."""
    ends = ("attn2.to_k", "attn2.to_k.weight")
    return next((value.shape[1] for key, value in state.items() if key.endswith(ends)), None)


def _other_width(theirs: int | None, own: int | None) -> str:
    named = [f"{wide} ({WIDTHS[wide]})" if wide in WIDTHS else str(wide) for wide in (theirs, own)]
    return f"its cross-attention takes text states of width {named[0]}, and that of the base {named[1]}"


def check_parts(weights: Weights, own: Mapping[str, Mapping[str, Tensor]], prediction_type: str, base: str) -> None:
    """Raises UserError where a pipeline's other parts are not the base's, for only its UNet would be taken.

    Args:
        weights: whose pipeline is compared, if they have one.
        own: state dicts of the base's parts by name.
        prediction_type: of the base's scheduler.
        base: what messages call it.
    """
    if weights.pipeline is None:
        return
    scheduler = weights.pipeline / "scheduler" / "scheduler_config.json"
    found = None
    if scheduler.is_file():
        config = read_json(scheduler, weights.option)
        flow = str(config.get("_class_name")).startswith("FlowMatch")
        found = "flow" if flow else config.get("prediction_type", "epsilon")
    if found not in (None, prediction_type):
        raise UserError(f"{weights.option}: its UNet predicts {found}, and that of the base {base} {prediction_type}.")
    for part, state in own.items():
        theirs: State = {}
        for file in sorted((weights.pipeline / part).glob("*.safetensors"))[:1]:
            theirs = _tensors(file, weights)
        if theirs and not _same(theirs, state):
            raise UserError(
                f"{weights.option}: its {part} is another than that of the base {base}, and an evaluation tells of the "
                "UNet alone; give the base that it was trained from as suite.base=, with the same parts."
            )


def _same(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Up to half precision, and to the prefix that older transformers give a text encoder's tensors."""
    ours = {key.removeprefix("text_model."): value for key, value in own.items()}
    renamed = {key.removeprefix("text_model."): value for key, value in theirs.items()}
    shared = ours.keys() & renamed.keys()
    return bool(shared) and all(
        ours[key].shape == renamed[key].shape
        and torch.allclose(renamed[key].float(), ours[key].float().cpu(), rtol=1e-2, atol=1e-3)
        for key in shared
    )


# ----------------------------------------------------------------------------------------------------------------- LoRA

ENDS = (  # of a key, by format: (pattern, which matrix)
    (r"\.lora_A(\.\w+)?\.weight", "down"),
    (r"\.lora_B(\.\w+)?\.weight", "up"),
    (r"\.lora[._]down\.weight", "down"),
    (r"\.lora[._]up\.weight", "up"),
    (r"(_lora)\.down\.weight", "down"),  # of an attention processor: attn1.processor.to_q_lora.down.weight
    (r"(_lora)\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
)
OTHERS = {  # signs in a key of what is no LoRA of a network alone
    r"lora_te|text_encoder|te\d?[._]": (
        "it has parts for the text encoder, which an evaluation leaves as the base has it; save those of the UNet alone"
    ),
    r".*(hada_|lokr_|oft_|lora_mid)": "it is no plain LoRA (LoHa, LoKr, OFT); merge it into the UNet and give that",
    r".*(dora_scale|lora_magnitude_vector)": "it is a DoRA; merge it into the UNet and give that",
}


OF_ANOTHER = {  # likewise of what is none of a network with, or without, such modules
    "add_embedding.": {r"lora_te2|text_encoder_2": "it is of Stable Diffusion XL, and the base has one text encoder"},
    "transformer_blocks.": {
        r"transformer\.|lora_transformer_|.*(double|single|joint)_blocks|.*add_[kqv]_proj": (
            "it is of a transformer (Stable Diffusion 3, Flux), and the base has a UNet"
        )
    },
}


def read_lora(weights: Weights, modules: Mapping[str, Tensor], base: str) -> dict[str, Adapter]:
    """Adapters by module of the network, float32, whatever the format.

    Args:
        weights: a LoRA.
        modules: weights of the base's network by module.
        base: what messages call it.

    Raises UserError on one of another model, with more than matrices for these modules, or that is not whole.
    """
    state, settings = _tensors(weights.file, weights), _settings(weights)
    signs = dict(OTHERS)
    for start, others in OF_ANOTHER.items():
        if not any(module.startswith(start) for module in modules):
            signs = others | signs
    for pattern, told in signs.items():
        if any(re.match(pattern, key) for key in state):
            raise UserError(f"{weights.option}: {weights.form}, and {told}.")
    flat = {name.replace(".", "_"): name for name in modules}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        module, which = _place(key, flat)
        if module not in modules:
            raise UserError(_misfit(weights, state, modules, base, f"the base has no layer {module}"))
        parts.setdefault(module, {})[which] = value.float()
    adapters = {}
    for module, found in parts.items():
        if not {"down", "up"} <= found.keys():
            raise UserError(f"{weights.option}: {module} has one matrix of two; the file is not whole.")
        shape, down, up = modules[module].shape, found["down"], found["up"]
        if up.shape[1] != down.shape[0]:
            raise UserError(
                f"{weights.option}: the two matrices of {module} have the ranks {down.shape[0]} and {up.shape[1]}, and "
                "cannot be multiplied: they are of two LoRAs, or the file is damaged; save it anew."
            )
        if (up.shape[0], *down.shape[1:]) != tuple(shape):
            found_shape, own_shape = [up.shape[0], *down.shape[1:]], list(shape)
            cause = f"its {module} is of a layer of {found_shape}, and that of the base is {own_shape}"
            raise UserError(_misfit(weights, state, modules, base, cause))
        alpha = found["alpha"].item() if "alpha" in found else _alpha(module, down.shape[0], settings)
        adapters[module] = Adapter(down, up, alpha)
    if not adapters:
        raise UserError(f"{weights.option}: {weights.file.name} holds no adapter.")
    return adapters


def _place(key: str, flat: Mapping[str, str]) -> tuple[str, str]:
    """Module and matrix of a key; kohya writes modules without dots, and `flat` knows them."""
    for pattern, which in ENDS:
        end = re.search(f"{pattern}$", key)
        if end is None:
            continue
        module = key[: end.start()]
        if module.startswith("lora_unet_"):
            return flat.get(module.removeprefix("lora_unet_"), module), which
        module = re.sub(r"^(base_model\.model\.)?((unet|transformer)\.)?", "", module)
        if end.group(0).startswith("_lora"):
            module = module.replace(".processor.", ".") + (".0" if module.endswith("to_out") else "")
        return module, which
    return key, ""


def _misfit(weights: Weights, state: State, modules: Mapping[str, Tensor], base: str, cause: str) -> str:
    """Where the text states' widths differ, that is the cause: it is of another model; else what was found first."""
    wide = {v.shape[1] for k, v in state.items() if re.search(r"attn2[._]to_[kv].*(down|lora_A)", k) and v.ndim == 2}
    own = _width(modules)
    if other := sorted(wide - {own}):
        cause = _other_width(other[0], own) if own is not None else f"{cause}; its text states are {other[0]} wide"
    return (
        f"{weights.option}: {weights.form} that does not fit the base {base}: {cause}; give a LoRA of that base, or "
        "its own base as suite.base=."
    )


def _settings(weights: Weights) -> dict:
    """What the file or its neighbour says of ranks and alphas; empty where nothing does, and alpha is the rank then."""
    config = weights.file.parent / "adapter_config.json"
    if weights.file.name == ADAPTER and config.is_file():
        settings = read_json(config, weights.option)
        if settings.get("modules_to_save") or settings.get("bias", "none") != "none":
            raise UserError(f"{weights.option}: it also holds biases or whole modules; merge it into the UNet.")
        return settings
    if weights.file.suffix == ".safetensors":
        with safe_open(weights.file, "pt") as opened:
            noted = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
        return {re.sub(r"^(unet|transformer)\.", "", key): value for key, value in noted.items()}
    return {}


def _alpha(module: str, rank: int, settings: Mapping) -> float:
    """As peft has it: by the module's pattern, else for all; with rank-stabilised scaling alpha / sqrt(rank)."""
    patterns = settings.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(settings.get("lora_alpha", rank) if own is None else own)
    return alpha * rank**0.5 if settings.get("use_rslora") else alpha
