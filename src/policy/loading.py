"""A Stable Diffusion pipeline from a folder or the hub, each part looked at before its weights are fetched and read.

What a policy cannot use is refused here, in a sentence, and not found out in the middle of sampling.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from src.errors import UserError, first_line
from src.files import user_path
from src.hub import fetch, load_strictly, load_tokenizer, read_json, require, require_weights, weight_files

POSITIONS = ("embeddings.position_ids",)  # older files hold this table
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS = {**dict.fromkeys(WEIGHTS, "config.json"), "scheduler": "scheduler_config.json"}
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
WANTED = "a StableDiffusionPipeline, such as CompVis/stable-diffusion-v1-4"
LIMITLESS = 1_000_000  # transformers gives a tokenizer without model_max_length one of 10^30
TOGETHER = "give parts that belong together."

Config = dict[str, Any]


def load_pipeline(path: str, revision: str | None, variant: str | None) -> StableDiffusionPipeline:
    """The parts that a policy needs, float32; a safety checker is neither fetched nor loaded.

    Raises UserError on whatever is no pipeline that DDIM, a prompt's text states and nothing else can sample from.
    """
    option = f"policy.path={path}"
    _look_at(user_path(path), option)
    plain = [f"{part}/{name}" for part, name in CONFIGS.items()]
    folder = fetch(path, "policy.path", ["model_index.json"], [*plain, "tokenizer/*"], revision)
    index = read_json(folder / "model_index.json", option)
    _check_index(index, option)
    require(folder, plain, option, revision)
    configs = {part: read_json(folder / file, option) for part, file in zip(CONFIGS, plain, strict=True)}
    _check_unet(configs["unet"], option)
    _check_fit(configs, option)
    tokenizer = load_tokenizer(_class_of(index, "tokenizer", option), folder / "tokenizer", "policy.path")
    _check_tokenizer(tokenizer, configs["text_encoder"], option)
    tokenizer.model_max_length = _tokens_read(tokenizer, configs["text_encoder"], option)
    files = [f"{part}/{name}" for part, stem in WEIGHTS.items() for name in weight_files(stem, variant)]
    folder = fetch(path, "policy.path", [], files, revision)
    for part, stem in WEIGHTS.items():
        require_weights(folder / part, stem, variant, option, revision)
    encoder = _class_of(index, "text_encoder", option)
    return StableDiffusionPipeline(
        vae=_load(_class_of(index, "vae", option), folder / "vae", variant, option),
        text_encoder=load_strictly(encoder, folder / "text_encoder", option, ignored=POSITIONS, variant=variant),
        tokenizer=tokenizer,
        unet=_load(_class_of(index, "unet", option), folder / "unet", variant, option),
        scheduler=_scheduler(index, folder / "scheduler", option),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _look_at(path: Path, option: str) -> None:
    """Raises UserError on a file, and on a folder with something else than a pipeline in it."""
    if path.is_file():
        raise UserError(
            f"{option}: it is a file, and the policy takes a folder: a checkpoint in one file becomes one by "
            "diffusers' StableDiffusionPipeline.from_single_file(...).save_pretrained(...)."
        )
    if not path.is_dir() or (path / "model_index.json").exists():
        return
    found = "no pipeline (model_index.json is missing)"
    if (path / "config.json").is_file():
        config = read_json(path / "config.json", option)
        found = f"{config.get('_class_name') or (config.get('architectures') or ['one model'])[0]} alone"
    elif list(path.glob("*lora*.safetensors")):
        found = "a LoRA alone"
    elif (path / "unet").is_dir() or (path / "lora").is_dir():
        found = "a run's weights alone, or parts of a pipeline (model_index.json is missing)"
    raise UserError(
        f"{option}: there is {found}; give a folder with model_index.json in it, {WANTED} saved by save_pretrained "
        "with these weights."
    )


def _check_index(index: Config, option: str) -> None:
    kind = index.get("_class_name")
    if kind != StableDiffusionPipeline.__name__:
        raise UserError(f"{option}: it is a {kind}; give {WANTED}.")
    for part in (*CONFIGS, "tokenizer"):
        found = _class_of(index, part, option).__name__
        if (part == "unet" and found != UNet2DConditionModel.__name__) or found.endswith("WithProjection"):
            raise UserError(f"{option}: its {part} is a {found}, which the policy does not take; give {WANTED}.")


def _check_unet(unet: Config, option: str) -> None:
    """Raises UserError on a denoiser of more than a latent, a timestep and text states."""
    channels, size = (unet.get("in_channels", 4), unet.get("out_channels", 4)), unet.get("sample_size")
    wants = {
        "addition_embed_type": "pooled text states and picture sizes with every forward, as Stable Diffusion XL's",
        "class_embed_type": "class labels",
        "num_class_embeds": "class labels",
        "time_cond_proj_dim": "the guidance scale as an embedding, as a latent consistency model",
    }
    for key, what in wants.items():
        if unet.get(key):
            raise UserError(f"{option}: its UNet wants {what} ({key}={unet[key]}); give {WANTED}.")
    if unet.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise UserError(
            f"{option}: its UNet wants states of pictures (encoder_hid_dim_type={unet['encoder_hid_dim_type']}); "
            f"give {WANTED}."
        )
    if channels[0] != channels[1]:
        more = {9: " (inpainting: a mask and a masked picture too)", 8: " (a picture to edit too)", 5: " (depth too)"}
        raise UserError(
            f"{option}: its UNet takes {channels[0]} channels and gives {channels[1]}{more.get(channels[0], '')}; "
            f"the policy's takes what it gives: give {WANTED}."
        )
    if not isinstance(size, int):
        what = f"latents of {size}, which are not square" if size else "latents of a size that it does not tell"
        raise UserError(f"{option}: its UNet takes {what} (sample_size in unet/config.json); give a number.")


def _check_fit(configs: dict[str, Config], option: str) -> None:
    """Raises UserError where text encoder, UNet and decoder are not made for each other."""
    unet, vae, text = (configs[part] for part in ("unet", "vae", "text_encoder"))
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        raise UserError(f"{option}: its UNet denoises {channels} channels and its VAE decodes {latents}; {TOGETHER}")
    read = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)
    width = text.get("hidden_size", read)
    if any(each != width for each in (read if isinstance(read, list) else [read])):
        raise UserError(
            f"{option}: its UNet reads text states of width {read}, and its text encoder gives {width}; {TOGETHER}"
        )
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(key):
            raise UserError(
                f"{option}: its VAE moves its latents ({key}={vae[key]}), which no StableDiffusionPipeline takes back; "
                f"{TOGETHER}"
            )
    if not vae.get("scaling_factor", 1):
        raise UserError(f"{option}: vae/config.json has no scaling_factor; {TOGETHER}")


def _check_tokenizer(tokenizer: Any, text: Config, option: str) -> None:
    if tokenizer.pad_token is None:
        raise UserError(f"{option}: its tokenizer has no pad_token; name one in tokenizer/tokenizer_config.json.")
    known = text.get("vocab_size", 49408)
    if len(tokenizer) > known:
        raise UserError(f"{option}: its tokenizer has {len(tokenizer)} tokens and its text encoder {known}; {TOGETHER}")


def _tokens_read(tokenizer: Any, text: Config, option: str) -> int:
    """How many tokens of a prompt the text encoder sees: its positions, or fewer if the tokenizer says."""
    length = min(tokenizer.model_max_length, text.get("max_position_embeddings", LIMITLESS))
    if length >= LIMITLESS:
        raise UserError(
            f"{option}: neither its tokenizer nor its text encoder says how long a prompt may be; set the tokenizer's "
            "model_max_length in tokenizer/tokenizer_config.json."
        )
    return length


def _class_of(index: Config, part: str, option: str) -> Any:
    """The class that the pipeline names for a part. Raises UserError where there is none, or one of its own code."""
    library, name = (*(index.get(part) or ()), None, None)[:2]
    if not name:
        raise UserError(f"{option}: it has no {part}; give {WANTED}.")
    found = getattr(LIBRARIES.get(library), str(name), None)
    if found is None:
        raise UserError(f"{option}: its {part} is a {name} of {library}, which is not installed here; give {WANTED}.")
    return found


def _scheduler(index: Config, folder: Path, option: str) -> Any:
    kind = _class_of(index, "scheduler", option)
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"{option}: its {kind.__name__} does not take its configuration ({first_line(error)})."
        ) from error


def _load(model_class: Any, folder: Path, variant: str | None, option: str) -> Any:
    """A model of diffusers in float32 whose every tensor comes from its files, and which uses all of them."""
    try:
        model, report = model_class.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below
        )
    except (OSError, ValueError, RuntimeError, TypeError, NotImplementedError, SafetensorError) as error:
        raise UserError(
            f"{option}: its {folder.name} cannot be loaded ({first_line(error)}); fetch it anew."
        ) from error
    for fault, word in (("missing_keys", "missing"), ("mismatched_keys", "shape"), ("unexpected_keys", "unknown")):
        if report[fault]:
            key = min(key if isinstance(key, str) else key[0] for key in report[fault])
            raise UserError(f"{option}: the weights of its {folder.name} are of another architecture ({word}: {key}).")
    return model
