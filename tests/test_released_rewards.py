"""The real reward models: tiny files in the released formats, through the production code, against references."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BlipVisionModel, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from src.rewards import released, towers
from src.rewards.aesthetic import AestheticReward
from src.rewards.base import RewardModel, tower_input
from src.rewards.clip import CLIPReward
from src.rewards.hps import HPSReward, plain
from src.rewards.image_reward import HeadlessText, ImageReward, text_config
from tests.conftest import ROOT
from tests.released import (
    CONTEXT,
    IMAGE_REWARD,
    IMAGE_SIZE,
    IR_SIZE,
    MED_CONFIG,
    PROMPTS,
    VIT_H_14,
    aesthetic_shapes,
    clip_tokenizer,
    pictures,
    write_bert_tokenizer,
    write_rewards,
)

GOLDEN = ROOT / "tests/golden"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One folder with a tiny model of every family but hps, whose is the golden one."""
    return write_rewards(tmp_path_factory.mktemp("released"))


def make(files: Path, family: str, **options) -> RewardModel:
    if family == "hps":
        tokenizer = str(files / "clip")
        return HPSReward(str(GOLDEN / "hps.pt"), tokenizer=tokenizer, vision_head=16, text_head=8, **options)
    if family == "imagereward":
        return ImageReward(str(files / "ImageReward"), tokenizer=str(files / "bert"), head_width=16, **options)
    if family == "aesthetic":
        return AestheticReward(str(files / "clip"), str(files), filename="aesthetic-model.pth", **options)
    return CLIPReward(str(files / "clip"), **options)


FAMILIES = ("pickscore", "hps", "imagereward", "aesthetic")


def pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in images]


# ------------------------------------------------------------------------------------------------- against references


def test_pickscore_is_transformers_own_clip_on_its_own_preprocessing(files):
    reward, images = make(files, "pickscore"), pictures(3, IMAGE_SIZE, IMAGE_SIZE)
    clip = CLIPModel.from_pretrained(files / "clip").eval()
    pixels = CLIPImageProcessorPil.from_pretrained(files / "clip")(pil(images), return_tensors="pt").pixel_values
    tokens = clip_tokenizer()(PROMPTS, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        expected = clip(pixel_values=pixels, **tokens).logits_per_image.diag()
    torch.testing.assert_close(reward.score(images, PROMPTS), expected, atol=1e-4, rtol=0)


def test_aesthetic_is_the_published_chain_on_transformers_own_clip(files):
    reward, images = make(files, "aesthetic"), pictures(3, IMAGE_SIZE, IMAGE_SIZE)
    clip = CLIPModel.from_pretrained(files / "clip").eval()
    pixels = CLIPImageProcessorPil.from_pretrained(files / "clip")(pil(images), return_tensors="pt").pixel_values
    state = torch.load(files / "aesthetic-model.pth", weights_only=True)
    with torch.no_grad():
        x = clip.get_image_features(pixel_values=pixels).pooler_output
        x = x / x.norm(dim=-1, keepdim=True)
        for k in (0, 2, 4, 6, 7):
            x = x @ state[f"layers.{k}.weight"].T + state[f"layers.{k}.bias"]
    torch.testing.assert_close(reward.score(images, PROMPTS), x.squeeze(-1), atol=1e-4, rtol=0)


def test_hps_is_open_clips_own_model(files):
    golden = torch.tensor(json.loads((GOLDEN / "hps.json").read_text())["scores"])
    images = pictures(3, IMAGE_SIZE, IMAGE_SIZE)
    torch.testing.assert_close(make(files, "hps").score(images, PROMPTS), golden, atol=1e-4, rtol=0)


def test_hps_reads_prompts_as_open_clip_does():
    assert plain("“Curly” ‘quotes’, ﬁne &amp;amp; ＷＩＤＥ") == "\"Curly\" 'quotes', fine & WIDE"
    assert plain("café, a cat… 日本語 – 8k") == "café, a cat… 日本語 – 8k"


def test_imagereward_is_the_published_architecture_in_plain_torch(files):
    reward, images = make(files, "imagereward"), pictures(3, IR_SIZE, IR_SIZE)
    state = torch.load(files / "ImageReward" / "ImageReward.pt", weights_only=True)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    words = write_bert_tokenizer(files / "again")
    tokens = words(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    expected = reference_image_reward(state, pixels, tokens.input_ids, tokens.attention_mask)
    assert expected.std() > 1e-2  # or the comparison would say little
    torch.testing.assert_close(reward.score(images, PROMPTS), expected, atol=1e-4, rtol=0)


def reference_image_reward(state, pixels, ids, mask):
    """BLIP's image tower (pre-norm, 1e-6), med BERT (post-norm, 1e-12; cross-attention after self-attention), MLP."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name, eps):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attend(q, k, v, hidden=None):
        q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None], -1e4)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    image, words = "blip.visual_encoder", "blip.text_encoder"
    x = F.conv2d(pixels, state[f"{image}.patch_embed.proj.weight"], state[f"{image}.patch_embed.proj.bias"], stride=16)
    x = torch.cat([state[f"{image}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{image}.pos_embed"]
    for k in range(2):
        block = f"{image}.blocks.{k}"
        x = x + linear(
            attend(*linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)), f"{block}.attn.proj"
        )
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    patches = norm(x, f"{image}.norm", 1e-6)

    x = state[f"{words}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{words}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x, f"{words}.embeddings.LayerNorm", 1e-12)
    for k in range(2):
        layer = f"{words}.encoder.layer.{k}"
        for name, source, hidden in (("attention", None, mask == 0), ("crossattention", patches, None)):
            seen = x if source is None else source
            q, (key, value) = (
                linear(x, f"{layer}.{name}.self.query"),
                (linear(seen, f"{layer}.{name}.self.{part}") for part in ("key", "value")),
            )
            out = linear(attend(q, key, value, hidden), f"{layer}.{name}.output.dense")
            x = norm(x + out, f"{layer}.{name}.output.LayerNorm", 1e-12)
        out = linear(F.gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(x + out, f"{layer}.output.LayerNorm", 1e-12)
    x = x[:, 0]
    for k in (0, 2, 4, 6, 7):
        x = linear(x, f"mlp.layers.{k}")
    return (x.squeeze(-1) - 0.16717362830052426) / 1.0333394966054072


# ------------------------------------------------------------------------------------------------- what all must do


@pytest.mark.parametrize("family", FAMILIES)
def test_the_company_of_a_picture_changes_no_score_and_gradients_reach_it(files, family):
    reward, images = make(files, family, batch_size=2), pictures(3, 50, 40)
    alone = torch.cat([reward.score(images[k : k + 1], PROMPTS[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(reward.score(images, PROMPTS), alone, atol=1e-5, rtol=0)
    asked = images[:1].clone().requires_grad_()
    reward(asked, PROMPTS[:1]).sum().backward()
    assert asked.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in reward.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_has_the_gradient_of_finite_differences_on_request(files, family):
    """Along it, from pictures that are resized on the way."""
    reward, images = make(files, family, batch_size=2), 0.25 + 0.5 * pictures(3, 50, 40)
    assert not reward.score(images.requires_grad_(), PROMPTS).requires_grad
    scores = reward.score(images, PROMPTS, differentiable=True)
    gradient = torch.autograd.grad(scores.sum(), images)[0]
    step = 0.005 * gradient / gradient.abs().max()
    with torch.no_grad():
        rise = (reward.score(images + step, PROMPTS) - reward.score(images - step, PROMPTS)).sum() / 2
    assert rise > 0
    torch.testing.assert_close(rise, (gradient * step).sum(), rtol=0.01, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_towers_score_nearly_the_same_in_float32_and_whatever_the_autocast(files, family):
    images = pictures(3, IMAGE_SIZE, IMAGE_SIZE)
    exact, rough = make(files, family).score(images, PROMPTS), make(files, family, precision="bf16")
    scores = rough.score(images, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, atol=0.2 if family == "pickscore" else 0.02, rtol=0)  # a scale of 14
    embedded = rough.embed_images(images)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(3), atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # of the trainer's precision
        assert torch.equal(make(files, family).score(images, PROMPTS), exact)


def test_one_copy_of_a_shared_tower(files):
    tower, aesthetic = make(files, "pickscore", shared=True), make(files, "aesthetic", shared=True)
    assert aesthetic.clip.clip is tower.clip
    assert make(files, "pickscore", shared=True, precision="bf16").clip is not tower.clip
    assert make(files, "pickscore").clip is not tower.clip  # asked for its own
    del tower, aesthetic
    assert len(towers._shared) == 0  # nothing is held that nobody uses


# --------------------------------------------------------------------------------------------------- preprocessing


def smooth(n: int, h: int, w: int) -> torch.Tensor:
    return (F.interpolate(pictures(n, 8, 8), size=(h, w), mode="bicubic").clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize(
    ("make_pictures", "size", "largest", "mean"),
    [(smooth, (512, 512), 1.1, 0.3), (smooth, (320, 256), 1.1, 0.3), (pictures, (512, 512), 3.5, 0.3)],
)
def test_resizing_differs_from_pils_by_its_rounding_alone(make_pictures, size, largest, mean):
    """In levels of 255. PIL rounds, and clips, to 8 bits between rows and columns too; noise shows that most."""
    images, zero, one = make_pictures(2, *size), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    theirs = CLIPImageProcessorPil(do_normalize=False)(pil(images), return_tensors="pt").pixel_values
    levels = (tower_input(images, 224, zero, one) - theirs).abs() * 255
    assert levels.max() < largest and levels.mean() < mean


def test_resizing_moves_scores_by_little():
    """Of a trained CLIP, the miniature world's, on 146 to 64 pixels, which is 512 to 224."""
    folder, prompts = str(ROOT / "src/mini/weights/clip"), ["a cat"] * 16
    reward, processor = CLIPReward(folder), CLIPImageProcessorPil.from_pretrained(folder, do_normalize=False)
    for make_pictures in (smooth, pictures):
        images = make_pictures(16, 146, 146)
        theirs = reward.score(processor(pil(images), return_tensors="pt").pixel_values, prompts)
        assert (reward.score(images, prompts) - theirs).abs().max() < 0.1 * theirs.std()


def test_hps_pads_what_is_not_square(files):
    wide = torch.full((1, 3, 20, 40), 0.5)
    pixels = tower_input(wide, IMAGE_SIZE, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), "pad")
    assert pixels.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE)
    rows = pixels[0, 0, :, 0]
    assert torch.equal(rows > 0.25, torch.tensor([7 <= k < 21 for k in range(IMAGE_SIZE)]))  # 14 rows, black around
    square = pictures(1, 40, 40)
    torch.testing.assert_close(  # but for the overshoot of edges, the same as cropping
        tower_input(square, 28, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), "pad").clamp(0, 1),
        tower_input(square, 28, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), "crop"),
    )


# --------------------------------------------------------------------------------------- the real files, at full size


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes_of(state) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def test_hps_file_has_its_place_at_full_size():
    state = on_meta(VIT_H_14)
    assert sum(value.numel() for value in state.values()) == 986_109_441  # open_clip's own count
    config = released.clip_config(state, "hps", vision_head=80, text_head=64, eos=49407)
    with torch.device("meta"):
        clip = CLIPModel(config)
    assert shapes_of(released.clip_from_open_clip(state, "hps")) == shapes_of(clip.state_dict())
    assert config.vision_config.num_attention_heads == config.text_config.num_attention_heads == 16


def test_pickscore_file_has_its_place_at_full_size():
    """yuvalkirstain/PickScore_v1/config.json, in its essentials; model.safetensors has 3.94 GB."""
    tower = {"hidden_act": "gelu", "num_attention_heads": 16, "projection_dim": 1024}
    vision = tower | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    text = tower | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=1024))
    # the same network as HPS's, so the same tensors under transformers' names
    assert shapes_of(clip.state_dict()) == shapes_of(released.clip_from_open_clip(on_meta(VIT_H_14), "hps"))


def test_imagereward_file_has_its_place_at_full_size():
    state = on_meta(IMAGE_REWARD)
    size = sum(value.numel() * (8 if key.endswith("position_ids") else 4) for key, value in state.items())
    overhead = 1_786_880_927 - size  # of the released file; zip and pickle take a few hundred bytes a tensor
    assert 200 * len(state) < overhead < 500 * len(state)
    vision, renamed = released.blip_vision(released.part(state, "blip.visual_encoder."), "imagereward", 64)
    text = text_config(MED_CONFIG, vision.hidden_size)
    with torch.device("meta"):
        tower, words = BlipVisionModel(vision), HeadlessText(text)
    assert shapes_of(renamed) == shapes_of(tower.state_dict())
    assert (vision.num_attention_heads, vision.image_size, vision.layer_norm_eps) == (16, 224, 1e-6)
    assert (text.num_attention_heads, text.layer_norm_eps, text.hidden_act) == (12, 1e-12, "gelu")
    wanted = released.part(state, "blip.text_encoder.")
    wanted.pop("embeddings.position_ids")
    assert shapes_of(wanted) == shapes_of(words.state_dict())


def test_aesthetic_file_has_its_place_at_full_size():
    state = {key: torch.zeros(shape) for key, shape in aesthetic_shapes(768).items()}
    overhead = 3_714_759 - 4 * sum(value.numel() for value in state.values())
    assert 200 * len(state) < overhead < 500 * len(state)
    chain = released.linear_layers(state, "aesthetic")
    assert [layer.out_features for layer in chain] == [1024, 128, 64, 16, 1]
