"""What is shipped and what runs save is read by transformers 4 and 5 alike."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.transformers4 import ROUNDING, differences
from src.mini.unet import save_pipeline
from src.policy.diffusion import DiffusionPolicy
from src.rewards.clip import CLIPReward
from src.rewards.image_text import ImageTextReward
from src.saving import name_tensors_for_both, save_text_encoder
from tests.conftest import BASE, ROOT
from tests.released import TINY_TEXT

WEIGHTS = ROOT / "src/mini/weights"
CLIPS = ("clip", "clip_narrow", "hps", "pickscore")
TOKENIZERS = ("base/tokenizer", *CLIPS, "imagereward", "matching")
TEXTS = ["a picture of a zebra", "An Owl, flat style", "rhinoceros", "", "läufer 狗 🦊"]


def keys_of(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def check_clip(folder: Path) -> None:
    """transformers 4 wants each tensor below one of these; so did the hub's files, always."""
    for key in keys_of(folder / "model.safetensors"):
        assert key.split(".")[0] in (
            "text_model",
            "vision_model",
            "text_projection",
            "visual_projection",
            "logit_scale",
        )


def check_tokenizer(folder: Path) -> None:
    """The slow tokenizer of transformers 4 reads these two, and 5 the third; they hold the same."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert vocabulary == model["vocab"]
    assert merges[0].startswith("#version") and [tuple(line.split(" ")) for line in merges[1:]] == [
        tuple(pair) for pair in model["merges"]
    ]


def test_the_shipped_text_encoder_has_the_names_that_both_read():
    keys = keys_of(WEIGHTS / "base/text_encoder/model.safetensors")
    assert keys and all(key.startswith("text_model.") for key in keys)
    assert set(keys) == {
        f"text_model.{key}" for key in CLIPTextModel.from_pretrained(f"{BASE}/text_encoder").state_dict()
    }


@pytest.mark.parametrize("name", CLIPS)
def test_shipped_pairs_have_the_names_that_both_read(name):
    check_clip(WEIGHTS / name)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_shipped_tokenizers_are_there_in_both_formats(name):
    check_tokenizer(WEIGHTS / name)


@pytest.mark.parametrize("name", CLIPS)
def test_a_saved_reward_is_read_by_both(name, tmp_path):
    reward = CLIPReward(str(WEIGHTS / name))
    reward.save(tmp_path)
    check_clip(tmp_path)
    check_tokenizer(tmp_path)
    shipped, saved = (load_file(folder / "model.safetensors") for folder in (WEIGHTS / name, tmp_path))
    assert shipped.keys() == saved.keys() and all(torch.equal(shipped[key], saved[key]) for key in shipped)


def test_a_saved_imagereward_is_the_shipped_one(tmp_path):
    ImageTextReward(str(WEIGHTS / "imagereward")).save(tmp_path)
    check_tokenizer(tmp_path)
    shipped, saved = (load_file(folder / "model.safetensors") for folder in (WEIGHTS / "imagereward", tmp_path))
    assert shipped.keys() == saved.keys() and all(torch.equal(shipped[key], saved[key]) for key in shipped)


def test_old_reward_folders_are_read_still(tmp_path):
    """Without vocab.json and merges.txt, as they were saved before."""
    CLIPReward(str(WEIGHTS / "hps")).save(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    images = torch.rand(2, 3, 64, 64)
    old, new = CLIPReward(str(tmp_path)), CLIPReward(str(WEIGHTS / "hps"))
    assert torch.equal(old.score(images, TEXTS[:2]), new.score(images, TEXTS[:2]))


def test_a_new_text_encoder_is_named_for_both_and_no_value_changes(tmp_path):
    encoder = CLIPTextModel(CLIPTextConfig(**TINY_TEXT))
    save_text_encoder(encoder, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert {f"text_model.{key}" for key in encoder.state_dict()} == state.keys()
    assert all(torch.equal(state[f"text_model.{key}"], value) for key, value in encoder.state_dict().items())
    before = (tmp_path / "model.safetensors").read_bytes()
    name_tensors_for_both(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before  # once is enough
    again, report = CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(torch.arange(5)[None])[0], encoder.eval()(torch.arange(5)[None])[0])


def test_a_pipeline_of_the_stages_is_the_shipped_one(tmp_path):
    policy = DiffusionPolicy(BASE, "full", 4, 1.0, 1.0, 8)
    save_pipeline(policy.unet, Path(BASE), tmp_path)
    check_tokenizer(tmp_path / "tokenizer")
    for file in Path(BASE).rglob("*.safetensors"):
        shipped, saved = load_file(file), load_file(tmp_path / file.relative_to(BASE))
        assert shipped.keys() == saved.keys() and all(torch.equal(shipped[key], saved[key]) for key in shipped)


def test_both_formats_of_a_tokenizer_give_the_same_tokens(tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((WEIGHTS / "base/tokenizer" / name).read_bytes())
    both = [CLIPTokenizer.from_pretrained(folder) for folder in (tmp_path, f"{BASE}/tokenizer")]
    assert both[0](TEXTS).input_ids == both[1](TEXTS).input_ids


@pytest.mark.slow
def test_transformers_4_computes_the_same(tmp_path):
    """In an environment of its own, which it makes; what a reward saves is compared too."""
    CLIPReward(str(WEIGHTS / "hps")).save(tmp_path / "reward")
    apart = differences([*(WEIGHTS / name for name in CLIPS), tmp_path / "reward"])
    assert len(apart) == 18
    assert max(apart.values()) < ROUNDING, apart
