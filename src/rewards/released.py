"""How the authors' released checkpoints name their tensors, and how transformers names the same ones."""

import re
from collections.abc import Mapping

from torch import Tensor, nn
from transformers import BlipVisionConfig, CLIPConfig

from src.errors import UserError

BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OPEN_CLIP = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
BLIP_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def clip_from_open_clip(state: Mapping[str, Tensor], option: str) -> dict[str, Tensor]:
    """A state dict of open_clip's CLIP under transformers' names. Raises UserError on a key that open_clip has not.

    Queries, keys and values are three matrices there and one here; projections are the transposed ones.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        block = BLOCK.fullmatch(key)
        if block:
            tower, number, rest = block.groups()
            prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}."
            renamed |= {prefix + name: part for name, part in _block_tensors(rest, value, key, option).items()}
        else:
            name = _looked_up(OPEN_CLIP, key, key, option)
            renamed[name] = value.T.contiguous() if key in ("text_projection", "visual.proj") else value
    return renamed


def _block_tensors(rest: str, value: Tensor, key: str, option: str) -> dict[str, Tensor]:
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.rsplit("_", 1)[1]
        return {f"self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", value.chunk(3), strict=True)}
    module, kind = rest.rsplit(".", 1)
    return {f"{_looked_up(IN_BLOCK, module, key, option)}.{kind}": value}


def clip_config(state: Mapping[str, Tensor], option: str, vision_head: int, text_head: int, eos: int) -> CLIPConfig:
    """The architecture of open_clip's ViTs, read from the shapes of a state dict.

    Args:
        state: in open_clip's names.
        option: what error messages call it.
        vision_head: channels of an attention head, which no shape tells: 80 for ViT-H-14.
        text_head: likewise, 64.
        eos: id of the token whose state stands for the text.
    """
    shape = {key: tuple(value.shape) for key, value in state.items()}
    for key in ("visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight", "text_projection"):
        if key not in shape:
            raise UserError(f"{option}: the weights are of another architecture (missing: {key}).")
    vision_width, _, patch, _ = shape["visual.conv1.weight"]
    vocabulary, text_width = shape["token_embedding.weight"]
    grid = round((shape["visual.positional_embedding"][0] - 1) ** 0.5)
    return CLIPConfig(
        projection_dim=shape["text_projection"][1],
        vision_config=_tower(shape, "visual.", vision_width, vision_head)
        | {"image_size": grid * patch, "patch_size": patch},
        text_config=_tower(shape, "", text_width, text_head)
        | {
            "vocab_size": vocabulary,
            "max_position_embeddings": shape["positional_embedding"][0],
            "eos_token_id": eos,
            "bos_token_id": eos - 1,
            "pad_token_id": eos,
        },
    )


def _tower(shape: Mapping[str, tuple[int, ...]], prefix: str, width: int, head: int) -> dict:
    blocks = [BLOCK.fullmatch(key) for key in shape]
    return {
        "hidden_size": width,
        "intermediate_size": shape[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": 1 + max(int(b[2]) for b in blocks if b and (b[1] or "") == prefix),
        "num_attention_heads": width // head,
        "hidden_act": "gelu",
    }


def blip_vision(state: Mapping[str, Tensor], option: str, head: int) -> tuple[BlipVisionConfig, dict[str, Tensor]]:
    """Architecture and state dict of a BLIP image tower under transformers' names; `head`: channels of one, 64."""
    renamed: dict[str, Tensor] = {}
    depth = 0
    for key, value in state.items():
        module, _, kind = key.rpartition(".")
        prefix, end = "", f".{kind}"
        if key in ("cls_token", "pos_embed"):
            module, end = key, ""
        elif module.startswith("blocks."):
            _, number, module = module.split(".", 2)
            prefix, depth = f"encoder.layers.{number}.", max(depth, 1 + int(number))
        renamed[prefix + _looked_up(BLIP_VISION, module, key, option) + end] = value
    if "patch_embed.proj.weight" not in state or "pos_embed" not in state or not depth:
        raise UserError(f"{option}: the weights are of another architecture (missing: patch_embed.proj.weight).")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=depth,
        num_attention_heads=width // head,
        image_size=patch * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )
    return config, renamed


def linear_layers(state: Mapping[str, Tensor], option: str) -> list[nn.Linear]:
    """The linear layers `layers.N` in order, without the dropout between them. Raises UserError if they do not fit."""
    numbers = sorted({int(key.split(".")[1]) for key in state if re.fullmatch(r"layers\.\d+\.(weight|bias)", key)})
    unknown = set(state) - {f"layers.{n}.{kind}" for n in numbers for kind in ("weight", "bias")}
    if unknown or not numbers or len(state) != 2 * len(numbers):
        raise UserError(f"{option}: the weights are no chain of linear layers ({min(unknown, default='incomplete')}).")
    layers: list[nn.Linear] = []
    for n in numbers:
        weight = state[f"layers.{n}.weight"]
        if layers and layers[-1].out_features != weight.shape[1]:
            raise UserError(f"{option}: layers.{n} does not take what the layer before it gives.")
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({kind: state[f"layers.{n}.{kind}"].float() for kind in ("weight", "bias")})
    return layers


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, which is taken off."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _looked_up(names: Mapping[str, str], name: str, key: str, option: str) -> str:
    if name not in names:
        raise UserError(f"{option}: the weights are of another architecture (unknown: {key}).")
    return names[name]
