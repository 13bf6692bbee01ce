"""A diffusers pipeline from a folder or the hub, each part looked at before its weights are fetched and read.

What a policy cannot use is refused here, in a sentence, and not found out in the middle of sampling.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from src.errors import UserError, first_line
from src.files import user_path
from src.hub import fetch, load_strictly, load_tokenizer, read_json, require, require_weights, weight_files
from src.policy.pipelines.base import TOGETHER, Config, Pipeline
from src.policy.pipelines.sd import StableDiffusion
from src.policy.pipelines.sd3 import StableDiffusion3
from src.policy.pipelines.sdxl import StableDiffusionXL

FAMILIES: dict[str, type[Pipeline]] = {
    family.kind.__name__: family for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3)
}
LEFT_OVER = ("embeddings.position_ids", "encoder.embed_tokens.weight")  # a table in older files, a copy in a T5's
MODELS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
CONFIGS = (
    *(f"{m}/config.json" for m in MODELS),
    "scheduler/scheduler_config.json",
    *(f"tokenizer{s}/*" for s in ("", "_2", "_3")),
)
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
WANTED = f"a {StableDiffusion.kind.__name__}, such as CompVis/stable-diffusion-v1-4"
ANY = f"{WANTED}, a StableDiffusionXLPipeline or a StableDiffusion3Pipeline"
LIMITLESS = 1_000_000  # transformers gives a tokenizer without model_max_length one of 10^30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Source:
    """A pipeline's folder, or the hub's, with its configurations read and checked, and its weights not yet.

    Args:
        t5: whether a T5, which its family can do without, is used.

    Raises UserError on whatever is no pipeline that a policy can sample from.
    """

    def __init__(self, path: str, revision: str | None, variant: str | None, t5: bool = True):
        self.path, self.revision, self.variant, self.option = path, revision, variant, f"policy.path={path}"
        _look_at(user_path(path), self.option)
        folder = fetch(path, "policy.path", ["model_index.json"], CONFIGS, revision)
        self.index = read_json(folder / "model_index.json", self.option)
        self.family = self._family()
        present = [s for s in self.family.texts if s not in self.family.optional or (t5 and self._has(s))]
        self.texts = tuple(present)
        self.models = [self.family.network_name, "vae", *(f"text_encoder{suffix}" for suffix in self.texts)]
        files = {part: f"{part}/config.json" for part in self.models} | {"scheduler": "scheduler/scheduler_config.json"}
        self.classes = {part: _class_of(self.index, part, self.option) for part in [*files, *self._tokenizers()]}
        self._check_classes()
        require(folder, list(files.values()), self.option, revision)
        self.configs = {part: read_json(folder / file, self.option) for part, file in files.items()}
        self.family.check(self.configs, self.option)
        self.tokenizers = {name: self._tokenizer(name, folder) for name in self._tokenizers()}
        self.scheduler = _scheduler(self.classes["scheduler"], folder / "scheduler", self.option)

    def _family(self) -> type[Pipeline]:
        kind = self.index.get("_class_name")
        if kind not in FAMILIES:
            raise UserError(f"{self.option}: it is a {kind}; give {ANY}.")
        return FAMILIES[kind]

    def _has(self, suffix: str) -> bool:
        return bool((self.index.get(f"text_encoder{suffix}") or (None,))[0])

    def _tokenizers(self) -> list[str]:
        return [f"tokenizer{suffix}" for suffix in self.texts]

    def _check_classes(self) -> None:
        """Raises UserError on a network or a text encoder of another kind than the pipeline's."""
        network, family = self.family.network_name, self.family
        wanted = {"unet": diffusers.UNet2DConditionModel, "transformer": diffusers.SD3Transformer2DModel}[network]
        projected = {"text_encoder_2"} if family is StableDiffusionXL else {"text_encoder", "text_encoder_2"}
        for part in self.models:
            found = self.classes[part].__name__
            refused = part == network and found != wanted.__name__
            if part.startswith("text_encoder") and not part.endswith("_3"):
                projects = family is not StableDiffusion and part in projected
                refused = found.endswith("WithProjection") != projects
            if refused:
                raise UserError(
                    f"{self.option}: its {part} is a {found}, which the policy does not take; give {WANTED}."
                )

    def _tokenizer(self, name: str, folder: Path) -> Any:
        tokenizer = load_tokenizer(self.classes[name], folder / name, "policy.path")
        text = self.configs[name.replace("tokenizer", "text_encoder")]
        _check_tokenizer(tokenizer, text, self.option)
        tokenizer.model_max_length = _tokens_read(tokenizer, text, self.option)
        return tokenizer

    @property
    def encoders(self) -> list[str]:
        """Names of the text encoders among the pipeline's parts."""
        return [f"text_encoder{suffix}" for suffix in self.texts]

    def fetch(self, parts: Sequence[str]) -> Path:
        """The folder with the weights of these parts. Raises UserError where some are missing."""
        names = [f"{part}/{name}" for part in parts for name in weight_files(_stem(part), self.variant)]
        folder = fetch(self.path, "policy.path", [], names, self.revision)
        for part in parts:
            require_weights(folder / part, _stem(part), self.variant, self.option, self.revision)
        return folder

    def parts(self, frozen: torch.dtype, vae: str | None, vae_revision: str | None) -> dict[str, Any]:
        """All parts but the text encoders; the decoder is another one where `vae` names it."""
        network = self.family.network_name
        folder = self.fetch([network, *([] if vae else ["vae"])])
        decoder = self.load("vae", folder) if vae is None else _vae_at(vae, vae_revision, self.configs["vae"])
        parts = {network: self.load(network, folder, frozen), "vae": decoder, "scheduler": self.scheduler}
        zeros = bool(self.index.get("force_zeros_for_empty_prompt", True))
        return parts | self.tokenizers | {"force_zeros_for_empty_prompt": zeros}

    def load(self, part: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
        """A frozen part with its weights, from where `fetch` has put them."""
        if part not in self.encoders:
            model = _load(self.classes[part], folder / part, self.variant, self.option, dtype)
            return model.requires_grad_(False).eval()
        how: dict[str, Any] = {"ignored": LEFT_OVER, "variant": self.variant, "dtype": dtype}
        return load_strictly(self.classes[part], folder / part, self.option, **how)


def _vae_at(path: str, revision: str | None, own: Config) -> Any:
    """A decoder from a folder or repository of its own, float32."""
    option = f"policy.vae={path}"
    stem = "diffusion_pytorch_model"
    folder = fetch(path, "policy.vae", ["config.json"], weight_files(stem, None), revision)
    config = read_json(folder / "config.json", option)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None or config.get("latent_channels", 4) != own.get("latent_channels", 4):
        raise UserError(f"{option}: it is no decoder of the pipeline's latents; {TOGETHER}")
    require_weights(folder, stem, None, option, revision)
    return _load(kind, folder, None, option, torch.float32).requires_grad_(False).eval()


def _stem(part: str) -> str:
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


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


def _scheduler(kind: Any, folder: Path, option: str) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"{option}: its {kind.__name__} does not take its configuration ({first_line(error)})."
        ) from error


def _load(model_class: Any, folder: Path, variant: str | None, option: str, dtype: torch.dtype) -> Any:
    """A model of diffusers whose every tensor comes from its files, and which uses all of them."""
    try:
        model, report = model_class.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=dtype,
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
