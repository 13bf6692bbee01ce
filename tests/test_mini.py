import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from src.errors import UserError
from src.mini.captions import MAX_TOKENS, all_captions, captions, tokenize, train_tokenizer
from src.mini.data import augment, load_emoji
from src.mini.evaluate import WEIGHTS, Judge, sample
from src.prompts import SIMPLE_ANIMALS


def test_weights_are_small_and_safe():
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 40e6
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".md", ".png"}  # nothing that could run code


def test_plain_diffusers_draws_what_is_asked_for():
    judge, prompts = Judge(), list(SIMPLE_ANIMALS)
    top1, top5 = judge.accuracy(sample(WEIGHTS / "base", prompts, steps=10, guidance=1.0), prompts)
    shuffled = judge.accuracy(sample(WEIGHTS / "base", prompts, steps=10, guidance=1.0), prompts[1:] + prompts[:1])
    assert top1 > 0.4 and top5 > 0.7  # the card has the real figures, of 450 samples at 20 steps
    assert shuffled[0] < 0.1  # and the pictures are of their own prompts


def test_pipeline_folder_needs_no_code_of_ours():
    index = json.loads((WEIGHTS / "base/model_index.json").read_text())
    libraries = {value[0] for key, value in index.items() if isinstance(value, list) and value[0]}
    assert libraries == {"diffusers", "transformers"}
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "base")
    assert {p.dtype for p in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}


def test_the_empty_prompt_is_guided_like_any_other():
    assert sample(WEIGHTS / "base", ["", "cat"], steps=2, guidance=2.0).shape == (2, 3, 64, 64)


def test_captions_and_tokens():
    assert captions("owl", 1) == ["owl", "an owl", "a picture of an owl", "a flat owl", "owl, flat style"]
    names = ["cat", "owl"]
    assert all_captions(names)[0] == "" and len(set(all_captions(names))) == len(all_captions(names))
    tokenizer = train_tokenizer(names, vocab_size=128)
    tokens = tokenize(tokenizer, ["an owl", ""])
    assert tokens.shape == (2, MAX_TOKENS)
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == "an owl"
    assert tokens[1, 0] == tokenizer.bos_token_id and (tokens[1, 1:] == tokenizer.eos_token_id).all()


def test_augmentation_keeps_white_white_and_is_seeded():
    white = torch.ones(4, 3, 64, 64)
    rng = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    torch.testing.assert_close(augment(white, rng()), white)
    pictures = torch.rand(4, 3, 64, 64)
    assert torch.equal(augment(pictures, rng()), augment(pictures, rng()))
    identity = augment(pictures, rng(), strength=0.0)  # only flips
    for before, after in zip(pictures, identity, strict=True):
        gap = min((after - before).abs().max(), (after - before.flip(-1)).abs().max())
        assert gap < 1e-4


def test_a_tampered_download_is_refused(tmp_path):
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").write_bytes(b"not what was asked for")
    with pytest.raises(UserError, match="sha512"):
        load_emoji(tmp_path)
