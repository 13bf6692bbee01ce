"""Random weights of the paper's scale, as its files are on the hub, written by the libraries and the tests' writers."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from src.runs.folder import write_json
from tests.released import (
    IMAGE_REWARD,
    MED_CONFIG,
    VIT_H_14,
    aesthetic_shapes,
    clip_tokenizer,
    open_clip_shapes,
    random_state,
    write_bert_tokenizer,
    write_rewards,
    write_stable_diffusion,
)

UNET = {"sample_size": 64, "cross_attention_dim": 768}  # the rest of Stable Diffusion 1.4 is diffusers' default
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
VIT_H = {  # PickScore's
    "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "hidden_act": "gelu"}
    | {"num_attention_heads": 16},
    "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "hidden_act": "gelu"}
    | {"num_attention_heads": 16, "patch_size": 14},
    "projection_dim": 1024,
}
VIT_L = {  # the aesthetic predictor's
    "text_config": {key: value for key, value in TEXT.items() if key != "vocab_size"},
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
    | {"num_attention_heads": 16},
    "projection_dim": 768,
}
TINY_OPEN_CLIP = open_clip_shapes(16, 28, 14, vision=(32, 2), text=(24, 3), vocabulary=514, context=32)


def write_weights(folder: Path, size: str) -> list[str]:
    """Base model and rewards of a size, `full` or `tiny`; returns the overrides that make suite=sd14 use them."""
    (write_full if size == "full" else write_tiny)(folder)
    clip = folder / ("vit_l" if size == "full" else "clip")
    chosen = {
        "base": folder / "sd",
        "tower.path": clip,
        "rewards.hps.path": folder / "hps.pt",
        "rewards.hps.tokenizer": clip,
        "rewards.pickscore.path": folder / ("vit_h" if size == "full" else "clip"),
        "rewards.pickscore.processor": clip,
        "rewards.imagereward.path": folder / "ImageReward",
        "rewards.imagereward.tokenizer": folder / "bert",
        "rewards.aesthetic.path": folder,
        "rewards.aesthetic.clip": clip,
    }
    if size == "tiny":  # what the files do not tell
        chosen |= {"rewards.hps.vision_head": 16, "rewards.hps.text_head": 8, "rewards.imagereward.head_width": 16}
    return [f"++suite.{key}={value}" for key, value in chosen.items()]


def write_tiny(folder: Path) -> None:
    write_stable_diffusion(folder / "sd")
    write_rewards(folder)
    torch.save({"state_dict": random_state(TINY_OPEN_CLIP)}, folder / "hps.pt")


def write_full(folder: Path) -> None:
    """11 GB."""
    write_stable_diffusion(folder / "sd", UNET, VAE, TEXT)
    torch.save({"state_dict": halves(VIT_H_14)}, folder / "hps.pt")
    write_full_clip(folder / "vit_h", VIT_H)
    write_full_clip(folder / "vit_l", VIT_L)
    torch.save(random_state(aesthetic_shapes(768)), folder / "aesthetic-model.pth")
    write_bert_tokenizer(folder / "bert")
    (folder / "ImageReward").mkdir()
    torch.save(halves(IMAGE_REWARD), folder / "ImageReward" / "ImageReward.pt")
    write_json(folder / "ImageReward" / "med_config.json", MED_CONFIG)


def halves(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensor by tensor, so that they never are in memory in float32 all at once."""
    return {key: random_state({key: shape})[key].half() for key, shape in shapes.items()}


def write_full_clip(folder: Path, config: dict) -> None:
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 77
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    CLIPModel(CLIPConfig(**config | {"text_config": config["text_config"] | ids})).half().save_pretrained(folder)
    for part in (tokenizer, CLIPImageProcessor()):
        part.save_pretrained(folder)
