"""Tiny models in the formats that the real ones were released in, written by the libraries themselves."""

import json
import string
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

PROMPTS = ["a cat", "two dogs, oil on canvas", "BEE"]
CONTEXT = 32  # tokens of the tiny CLIPs
IMAGE_SIZE = 28
IR_SIZE = 32  # of the tiny ImageReward
MLP = (10, 8, 6, 4)  # hidden widths, of it and of the tiny aesthetic predictor


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding with no pairs: a token a letter; the ends of a text have the two highest ids."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: k for k, token in enumerate(tokens)}, merges=[])


def pictures(n: int, h: int, w: int, seed: int = 1) -> torch.Tensor:
    """Noise of 8 bits, so that PIL sees the same pictures."""
    return torch.randint(0, 256, (n, 3, h, w), generator=torch.Generator().manual_seed(seed)) / 255


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, those of norms and biases too, or a mix-up of two of them would not show."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    return model.eval()


def write_clip(folder: Path, size: int = IMAGE_SIZE, projection: int = 16, activation: str = "gelu") -> Path:
    """A CLIPModel folder as PickScore and OpenAI's CLIP are on the hub."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"hidden_act": activation}
    tokenizer = clip_tokenizer()
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"image_size": size, "patch_size": 14}
    config = CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=projection)
    edge = {"height": size, "width": size}
    torch.manual_seed(0)
    for part in (
        stirred(CLIPModel(config)),
        tokenizer,
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size=edge),
    ):
        part.save_pretrained(folder)
    return folder


def aesthetic_shapes(width: int, hidden: tuple[int, ...] = (1024, 128, 64, 16)) -> dict[str, tuple[int, ...]]:
    """Of sac+logos+ava1-l14-linearMSE.pth, where width is 768: dropout had numbers 1, 3 and 5."""
    widths = [width, *hidden, 1]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (inputs, outputs) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        shapes |= {f"layers.{number}.weight": (outputs, inputs), f"layers.{number}.bias": (outputs,)}
    return shapes


def open_clip_shapes(
    embed: int, size: int, patch: int, vision: tuple[int, int], text: tuple[int, int], vocabulary: int, context: int
) -> dict[str, tuple[int, ...]]:
    """Of open_clip's ViTs; vision and text: (width, layers)."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (context, text[0]),
        "text_projection": (text[0], embed),
        "logit_scale": (),
        "visual.class_embedding": (vision[0],),
        "visual.positional_embedding": ((size // patch) ** 2 + 1, vision[0]),
        "visual.proj": (vision[0], embed),
        "visual.conv1.weight": (vision[0], 3, patch, patch),
        "token_embedding.weight": (vocabulary, text[0]),
    }
    for norm, width in (("visual.ln_pre", vision[0]), ("visual.ln_post", vision[0]), ("ln_final", text[0])):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for prefix, (width, layers) in (("visual.", vision), ("", text)):
        for k in range(layers):
            block = f"{prefix}transformer.resblocks.{k}"
            shapes |= {f"{block}.{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            linear = {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
            for name, (outputs, inputs) in linear.items():
                shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
    return shapes


VIT_H_14 = open_clip_shapes(1024, 224, 14, vision=(1280, 32), text=(1024, 24), vocabulary=49408, context=77)


def image_reward_shapes(
    vision: tuple[int, int], text: tuple[int, int], vocabulary: int, positions: int, patches: int, mlp: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Of ImageReward.pt; vision and text: (width, layers). The names are those of BLIP's code and ImageReward's."""
    v, t = vision[0], text[0]
    image, words = "blip.visual_encoder", "blip.text_encoder"
    linear: dict[str, tuple[int, int]] = {"blip.vision_proj": (256, v), "blip.text_proj": (256, t)}
    norms: dict[str, int] = {f"{image}.norm": v, f"{words}.embeddings.LayerNorm": t}
    for k in range(vision[1]):
        block = f"{image}.blocks.{k}"
        linear |= {f"{block}.attn.qkv": (3 * v, v), f"{block}.attn.proj": (v, v)}
        linear |= {f"{block}.mlp.fc1": (4 * v, v), f"{block}.mlp.fc2": (v, 4 * v)}
        norms |= {f"{block}.norm1": v, f"{block}.norm2": v}
    for k in range(text[1]):
        layer = f"{words}.encoder.layer.{k}"
        for attention, source in (("attention", t), ("crossattention", v)):
            linear |= {f"{layer}.{attention}.self.query": (t, t), f"{layer}.{attention}.output.dense": (t, t)}
            linear |= {f"{layer}.{attention}.self.{name}": (t, source) for name in ("key", "value")}
            norms |= {f"{layer}.{attention}.output.LayerNorm": t}
        linear |= {f"{layer}.intermediate.dense": (4 * t, t), f"{layer}.output.dense": (t, 4 * t)}
        norms |= {f"{layer}.output.LayerNorm": t}
    shapes: dict[str, tuple[int, ...]] = {
        f"{image}.cls_token": (1, 1, v),
        f"{image}.pos_embed": (1, patches + 1, v),
        f"{image}.patch_embed.proj.weight": (v, 3, 16, 16),
        f"{image}.patch_embed.proj.bias": (v,),
        f"{words}.embeddings.position_ids": (1, positions),
        f"{words}.embeddings.word_embeddings.weight": (vocabulary, t),
        f"{words}.embeddings.position_embeddings.weight": (positions, t),
    }
    for name, (outputs, inputs) in linear.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes | {f"mlp.{key}": shape for key, shape in aesthetic_shapes(t, mlp).items()}


IMAGE_REWARD = image_reward_shapes(
    vision=(1024, 24), text=(768, 12), vocabulary=30524, positions=512, patches=196, mlp=(1024, 128, 64, 16)
)
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Norms about 1, everything else about 0."""
    rng = torch.Generator().manual_seed(seed)
    state = {key: 0.2 * torch.randn(shape, generator=rng) for key, shape in shapes.items()}
    for key in state:
        if "norm" in key.lower() and key.endswith("weight"):
            state[key] += 1
        if key.endswith("position_ids"):
            state[key] = torch.arange(state[key].shape[1])[None]
    return state


def write_bert_tokenizer(folder: Path) -> BertTokenizer:
    """BERT's word pieces, each of them a letter."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={token: k for k, token in enumerate(tokens)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_rewards(folder: Path) -> Path:
    """clip/, aesthetic-model.pth, ImageReward/ and bert/, as the real ones are."""
    write_clip(folder / "clip")
    torch.save(random_state(aesthetic_shapes(16, MLP)), folder / "aesthetic-model.pth")
    vocabulary = len(write_bert_tokenizer(folder / "bert")) + 2
    shapes = image_reward_shapes((32, 2), (24, 2), vocabulary, 40, (IR_SIZE // 16) ** 2, MLP)
    (folder / "ImageReward").mkdir()
    torch.save(random_state(shapes), folder / "ImageReward" / "ImageReward.pt")
    small = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"vocab_size": vocabulary, "max_position_embeddings": 40}
    (folder / "ImageReward" / "med_config.json").write_text(json.dumps(MED_CONFIG | small))
    return folder


FOUR_REWARDS = ("hps", "pickscore", "imagereward", "aesthetic")


def reward_overrides(folder: Path, hps: Path) -> list[str]:
    """So that a suite takes its four rewards and its tower from what `write_rewards` wrote, and this file."""
    clip, image_reward = folder / "clip", folder / "ImageReward"
    reward = {
        "hps": {"path": hps, "tokenizer": clip, "vision_head": 16, "text_head": 8},
        "pickscore": {"path": clip, "processor": clip},
        "imagereward": {"path": image_reward, "tokenizer": folder / "bert", "head_width": 16},
        "aesthetic": {"path": folder, "clip": clip},
    }
    own = [
        f"++suite.rewards.{name}.{key}={value}" for name, options in reward.items() for key, value in options.items()
    ]
    return [*own, f"suite.tower.path={clip}"]


TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TINY_VAE = {
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TINY_TEXT = {
    "vocab_size": 514,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
}


def write_stable_diffusion(
    folder: Path, unet: dict = TINY_UNET, vae: dict = TINY_VAE, text: dict = TINY_TEXT, **how
) -> Path:
    """Stable Diffusion 1.4's pipeline as it is on the hub, without the safety checker's folders.

    unet, vae and text are the configurations of its networks; `how` is how to save it.
    """
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = text["max_position_embeddings"]
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        AutoencoderKL(latent_channels=4, **vae),
        CLIPTextModel(CLIPTextConfig(**text, **ids)),
        tokenizer,
        UNet2DConditionModel(**unet),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, **how)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    schedule = folder / "scheduler" / "scheduler_config.json"  # a left-over of theirs, and DDIM's default is to clip
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"clip_sample": False}))
    return folder


TINY_XL_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "cross_attention_dim": 40,  # 16 and 24
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
TINY_TRANSFORMER = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 12 + 20,
    "pos_embed_max_size": 12,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
TINY_TEXT_2 = TINY_TEXT | {"hidden_size": 24, "projection_dim": 20, "num_hidden_layers": 2}
TINY_T5 = {"vocab_size": 99, "d_model": 48, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def _clip_encoder(kind: type, text: dict) -> tuple[nn.Module, CLIPTokenizer]:
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = text["max_position_embeddings"]
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return kind(CLIPTextConfig(**text, **ids)), tokenizer


def t5_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """T5's special tokens and a token a letter."""
    tokens = ["<pad>", "</s>", "<unk>", *string.ascii_letters][:vocabulary]
    words = Tokenizer(models.WordLevel({token: k for k, token in enumerate(tokens)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def write_sdxl(
    folder: Path,
    unet: dict = TINY_XL_UNET,
    vae: dict = TINY_VAE,
    texts: tuple[dict, dict] = (TINY_TEXT, TINY_TEXT_2),
    **how,
) -> Path:
    """Stable Diffusion XL base 1.0's pipeline as it is on the hub."""
    torch.manual_seed(0)
    first, tokenizer = _clip_encoder(CLIPTextModel, texts[0])
    second, tokenizer_2 = _clip_encoder(CLIPTextModelWithProjection, texts[1])
    StableDiffusionXLPipeline(
        AutoencoderKL(latent_channels=4, scaling_factor=0.13025, **vae),
        first,
        second,
        tokenizer,
        tokenizer_2,
        UNet2DConditionModel(**unet),
        EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder, **how)
    return folder


def write_sd3(
    folder: Path,
    transformer: dict = TINY_TRANSFORMER,
    vae: dict = TINY_VAE,
    texts: tuple[dict, dict] = (TINY_TEXT | {"projection_dim": 12}, TINY_TEXT_2),
    t5: dict | None = TINY_T5,
    **how,
) -> Path:
    """Stable Diffusion 3.5's pipeline as it is on the hub; its T5 is left out where `t5` is None."""
    torch.manual_seed(0)
    first, tokenizer = _clip_encoder(CLIPTextModelWithProjection, texts[0])
    second, tokenizer_2 = _clip_encoder(CLIPTextModelWithProjection, texts[1])
    StableDiffusion3Pipeline(
        SD3Transformer2DModel(**transformer),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        AutoencoderKL(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, **vae),
        first,
        tokenizer,
        second,
        tokenizer_2,
        T5EncoderModel(T5Config(**t5)) if t5 else None,
        t5_tokenizer(t5["vocab_size"]) if t5 else None,
    ).save_pretrained(folder, **how)
    return folder
