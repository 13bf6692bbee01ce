"""Random weights of the paper's scale, as its files are on the hub, written by the libraries and the tests' writers."""

from pathlib import Path
from typing import Any

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
    write_sd3,
    write_sdxl,
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
TEXT_2 = TEXT | {  # OpenCLIP's bigG, which Stable Diffusion XL and 3 read beside the first
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
SDXL: dict[str, Any] = {  # the public configurations
    "unet": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": VAE | {"sample_size": 1024},
    "texts": (TEXT, TEXT_2),
}
SD35: dict[str, Any] = {
    "transformer": {
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "vae": VAE | {"sample_size": 1024, "use_quant_conv": False, "use_post_quant_conv": False},
    "texts": (TEXT | {"projection_dim": 768}, TEXT_2),
    "t5": None,  # 9.5 GB more, which nothing but the prompts' embedding needs
}
TINY_OPEN_CLIP = open_clip_shapes(16, 28, 14, vision=(32, 2), text=(24, 3), vocabulary=514, context=32)


def write_weights(folder: Path, size: str, suite: str) -> list[str]:
    """Base model and rewards of a size, `full` or `tiny`; returns the overrides that make the suite use them."""
    (write_full if size == "full" else write_tiny)(folder)
    write_base(folder / "base", size, suite.removesuffix("_single_gpu"))
    clip = folder / ("vit_l" if size == "full" else "clip")
    chosen = {
        "base": folder / "base",
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
    own = [f"policy.prompt_cache={folder / 'prompts'}"]  # not the person's
    if size == "tiny":
        own += ["policy.resolution=null", "policy.t5_tokens=8"]
    return [*(f"++suite.{key}={value}" for key, value in chosen.items()), *own]


def write_base(folder: Path, size: str, suite: str) -> None:
    """The pipeline of a suite; the large ones in bfloat16, for they would not be in memory otherwise."""
    small = size == "tiny"
    if suite in ("sd14", "sd15"):
        write_stable_diffusion(folder, **({} if small else {"unet": UNET, "vae": VAE, "text": TEXT}))
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if small else torch.bfloat16)
    try:
        if suite == "sdxl":
            write_sdxl(folder, **({} if small else SDXL))
        else:
            write_sd3(folder, **({"t5": None} if small else SD35))
    finally:
        torch.set_default_dtype(before)


def write_tiny(folder: Path) -> None:
    write_rewards(folder)
    torch.save({"state_dict": random_state(TINY_OPEN_CLIP)}, folder / "hps.pt")


def write_full(folder: Path) -> None:
    """Of the rewards: 7 GB."""
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
