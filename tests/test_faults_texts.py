"""Prompts longer than what reads them, and in letters that a picture's font lacks."""

import pytest
import torch
from PIL import Image

from src.callbacks.gallery import LINE, picture_grid
from src.callbacks.labels import NOTE, fitted, is_spelt, label_font, legible
from src.policy.diffusion import DiffusionPolicy
from src.rewards.aesthetic import AestheticReward
from src.rewards.clip import CLIPReward
from src.rewards.ensemble import EnsembleReward
from src.rewards.hps import HPSReward
from src.rewards.image_reward import ImageReward
from src.rewards.image_text import ImageTextReward
from src.texts import warn_of_cut
from tests.conftest import BASE, ROOT, TINY
from tests.forked import run_forked
from tests.released import write_rewards

WEIGHTS = ROOT / "src/mini/weights"
LONG = "a fox " * 100
EDGE = " ".join(["a"] * 14)  # 14 tokens, the beginning and the end: 16


@pytest.fixture(scope="module")
def readers() -> dict:
    hps, imagereward = CLIPReward(str(WEIGHTS / "hps")), ImageTextReward(str(WEIGHTS / "imagereward"))
    return {
        "the policy": DiffusionPolicy(BASE, "full", 4, 1.0, 1.0, 8),
        "hps": hps,
        "imagereward": imagereward,
        "aesthetic": AestheticReward(str(WEIGHTS / "clip")),
        "ensemble": EnsembleReward([hps, imagereward], "worst", [0.0, 0.0], [1.0, 1.0]),
    }


def test_one_warning_tells_how_many_prompts_each_reader_cuts(readers, capsys):
    warn_of_cut(readers, ["a fox", LONG, LONG, LONG + "x", EDGE, EDGE + " a"])
    told = capsys.readouterr().err
    assert told == (
        "warning: of 5 prompts, the policy cuts 3 at 16 tokens, hps cuts 3 at 16 tokens, imagereward cuts 3 at 16 "
        "tokens, ensemble cuts 3 at 16 tokens: what comes after is not read.\n"
    )


def test_none_where_all_is_read(readers, capsys):
    warn_of_cut(readers, ["a fox", EDGE, ""])
    warn_of_cut(readers, [])
    assert capsys.readouterr().err == ""


def test_what_is_told_is_what_is_cut(readers):
    policy = readers["the policy"]
    for reader in (policy, readers["hps"]):
        states = (lambda texts: policy.encode_prompts(texts).states) if reader is policy else reader.embed_texts
        assert torch.equal(states([EDGE + " a fox"]), states([EDGE + " a cat"]))
        assert reader.too_long([EDGE + " a fox"]) and not reader.too_long([EDGE])
        assert not torch.equal(states([EDGE[:-1] + "fox"]), states([EDGE[:-1] + "cat"]))


def test_released_rewards_count_their_own_tokens(tmp_path):
    write_rewards(tmp_path)
    clip = str(tmp_path / "clip")
    hps = HPSReward(str(ROOT / "tests/golden/hps.pt"), tokenizer=clip, vision_head=16, text_head=8)
    imagereward = ImageReward(str(tmp_path / "ImageReward"), tokenizer=str(tmp_path / "bert"), head_width=16)
    assert (hps.max_tokens, imagereward.max_tokens) == (32, 35)  # a token a letter there
    assert hps.too_long(["x" * 30, "x" * 31]) == ["x" * 31]
    assert hps.too_long(["&amp;" * 20]) == []  # twenty letters once they are made plain
    assert imagereward.too_long(["x" * 33, "x" * 34]) == ["x" * 34]


@pytest.mark.parametrize(
    ("prompt", "label", "spelt"),
    [
        ("a fox", "a fox", False),
        ("Füchse, Straße – „ja“", 'Fuchse, Strasse - "ja“', False),
        ("Łódź, œuvre, Øre, naïve", "Lodz, oeuvre, Ore, naive", False),
        ("two\nlines\tand a tab", "two lines and a tab", False),
        ("一只狗", "\\u4e00\\u53ea\\u72d7", True),
        ("🦊 in snow", ":fox face: in snow", True),
        ("👩🏽\u200d🚀", ":woman::rocket:", True),  # the skin's colour and the joiner are left out
        ("кот", "\\u043a\\u043e\\u0442", True),
        ("no\u200bthing \x07here", "nothing here", False),
    ],
)
def test_labels_are_spelt_in_letters_that_the_font_has(prompt, label, spelt):
    assert legible(prompt) == label
    assert is_spelt([prompt]) == spelt


def test_a_label_keeps_its_end_and_to_its_width():
    length = label_font().getlength
    assert fitted("a fox", 100, " 1.2") == "a fox 1.2"
    for width in (20, 40, 60, 122):
        cut = fitted(LONG, width, " 1.2")
        assert cut.endswith("... 1.2") and (length(cut) <= width or cut == "... 1.2")
    assert fitted(LONG, 122).startswith("a fox a fox")


def inked(grid: Image.Image, left: int, top: int, right: int, bottom: int) -> bool:
    return grid.crop((left, top, right, bottom)).convert("L").getextrema()[0] < 128


def test_a_grids_labels_stay_in_their_cells():
    grid = picture_grid(torch.ones(2, 3, 8, 8), [LONG, ""], size=64, columns=2)
    assert grid.size == (128, 64 + LINE)
    assert inked(grid, 0, 64, 64, 64 + LINE) and not inked(grid, 64, 64, 128, 64 + LINE)


def test_a_grid_says_that_letters_are_spelt():
    plain, spelt = (picture_grid(torch.ones(2, 3, 8, 8), [label, "b"], size=300) for label in ("a", "狗"))
    assert spelt.size == (plain.width, plain.height + LINE)
    assert inked(spelt, 0, plain.height, plain.width, spelt.height)
    assert label_font().getlength(NOTE) < 600


def test_a_run_warns_once_and_draws_its_labels(tmp_path):
    """Prompts of 200 words, in Chinese, with an emoji and umlauts; the judge finds its animal in each."""
    prompts = ["a fox " * 100, "狗 dog", "cat 🐈", "bear in München"]
    file, folder = tmp_path / "prompts.txt", tmp_path / "run"
    file.write_text("\n".join(prompts), encoding="utf-8")
    done = run_forked(*TINY, "iterations=1", "prompts=file", f"prompts.path={file}", f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    warning, unmet = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert warning.startswith(
        "warning: of 4 prompts, the policy cuts 1 at 16 tokens, hps cuts 1 at 16 tokens, pickscore"
    )
    assert unmet.startswith("warning: no reset fell due: reset.every=10, iterations=1;")
    grid = Image.open(folder / "samples/00000.png")
    assert inked(grid, 0, grid.height - LINE, grid.width, grid.height)  # the note on letters that are spelt
