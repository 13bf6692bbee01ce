import json
import math

import pytest
import torch
from diffusers import StableDiffusionPipeline

from src.errors import UserError
from src.mini.captions import MAX_TOKENS, all_captions, captions, tokenize, train_tokenizer
from src.mini.data import EmojiData, augment, load_emoji
from src.mini.evaluate import WEIGHTS, Judge, sample
from src.mini.matching import MatchingStage
from src.prompts import SIMPLE_ANIMALS


def test_weights_are_small_and_safe():
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    flow = sum(p.stat().st_size for p in files if "flow" in p.relative_to(WEIGHTS).parts)
    assert flow <= 9e6 and sum(p.stat().st_size for p in files) - flow <= 40e6
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt", ".md", ".png"}  # nothing that could run code


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


def test_matching_asks_for_the_picture_and_for_others(monkeypatch):
    names = ("cat", "dog", "owl")
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    emoji = EmojiData(images, torch.arange(6) % 3, torch.zeros(6, dtype=torch.long), names, 3)
    monkeypatch.setattr("src.mini.stage.load_emoji", lambda folder: emoji)
    stage = MatchingStage(
        clip=str(WEIGHTS / "clip"),
        text_layers=1,
        head=[8],
        candidates=3,
        export_dir="",
        data_dir="",
        weights_dir="",
        steps=1,
        batch_size=16,
        lr=1e-3,
        seed=0,
    )
    asked = []

    def read(patches, texts):
        asked.extend(texts)
        return torch.zeros(len(texts), requires_grad=True)

    monkeypatch.setattr(stage.model, "read", read)
    monkeypatch.setattr(stage, "log_dict", lambda *args, **kwargs: None)
    monkeypatch.setattr(MatchingStage, "global_step", 0)
    assert stage.training_step(0, 0).item() == pytest.approx(math.log(3))  # three captions, all alike
    drawn = torch.randint(6, (16,), generator=stage.step_generator()) % 3
    for row, concept in enumerate(drawn.tolist()):
        own, *others = asked[3 * row : 3 * row + 3]
        assert names[concept] in own and not any(names[concept] in other for other in others)
