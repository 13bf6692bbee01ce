"""The gold annotator, the corruptions it learnt from, and the preference data made with it."""

import math

import pytest
import torch

from src.errors import UserError
from src.mini.corruptions import CORRUPTIONS, corrupt
from src.mini.gold import GoldAnnotator, subject, utility
from src.mini.preferences import Epochs, Pool, bradley_terry_labels, pairs_of
from src.mini.top_one import ClassifierTopOne
from tests.conftest import ROOT

PATH = str(ROOT / "src/mini/weights/gold")


@pytest.fixture(scope="module")
def gold() -> GoldAnnotator:
    return GoldAnnotator(PATH)


def disc(n: int) -> torch.Tensor:
    rows = torch.arange(64) - 31.5
    inside = (rows[:, None] ** 2 + rows[None, :] ** 2) < 400
    return torch.where(inside, 0.3, 1.0).expand(n, 3, 64, 64) * torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_grows_with_its_severity_from_nothing(kind):
    images = disc(8)
    distance = []
    for severity in (0.0, 0.3, 0.9):
        broken = corrupt(images, torch.full((8,), severity), [kind] * 8, torch.Generator().manual_seed(0))
        assert broken.min() >= 0 and broken.max() <= 1
        distance.append((broken - images).abs().mean().item())
    assert distance[0] < 1e-4
    assert distance[0] < distance[1] < distance[2]


def test_each_picture_is_broken_its_own_way():
    broken = corrupt(disc(3), torch.tensor([0.0, 1.0, 1.0]), ["blur", "noise", "erase"], torch.Generator())
    changed = (broken - disc(3)).abs().amax((1, 2, 3))
    assert changed[0] < 1e-4 and changed[1] > 0.5 and changed[2] > 0.2


def test_utility_is_the_mean_log_odds_of_the_subject():
    # member 1: p = (0.5, 0.25, 0.25); member 2: p = (0.8, 0.1, 0.1)
    logits = torch.tensor([[[0.5, 0.25, 0.25]], [[0.8, 0.1, 0.1]]]).log()
    torch.testing.assert_close(utility(logits, torch.tensor([0])), torch.tensor([math.log(4) / 2]))
    torch.testing.assert_close(utility(logits, torch.tensor([1])), torch.tensor([(-math.log(3) - math.log(9)) / 2]))


def test_utility_is_clipped_for_each_member():
    logits = torch.tensor([[[50.0, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(utility(logits, torch.tensor([0])), torch.tensor([4.0]))


def test_the_subject_is_the_longest_name_in_the_prompt(gold):
    assert gold.names[subject("a picture of a polar bear", gold.names)] == "polar bear"
    assert gold.names[subject("bear, flat style", gold.names)] == "bear"
    for prompt, meant in (("two owls", "owl"), ("a zebar", "zebra")):
        with pytest.raises(UserError, match=rf"{prompt}' \(did you mean {meant}\?\): name one of its \d+ animals"):
            subject(prompt, gold.names)
    with pytest.raises(UserError, match=r"know no animal of the prompt 'a teapot': name one of .* \(docs/world\.md"):
        gold.check_prompts(["cat", "a teapot"])
    assert f"These are {', '.join(sorted(gold.names))}." in (ROOT / "docs/world.md").read_text()


def test_gold_is_deterministic_and_scores_each_picture_alone(gold):
    images, prompts = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)), ["cat", "dog"] * 2 + ["fox"]
    alone = torch.cat([gold.score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(gold.score(images, prompts), alone, atol=1e-5, rtol=1e-5)


def test_gold_does_not_pay_for_rubbish(gold):
    rng = torch.Generator().manual_seed(1)
    noise = torch.rand(20, 3, 64, 64, generator=rng)
    flat = torch.rand(20, 3, 1, 1, generator=rng).expand(20, 3, 64, 64)
    for images in (noise, flat):
        assert gold.score(images, ["cat", "snake"] * 10).max() < -2


def test_the_independent_classifier_counts_right_first_choices():
    judge, prompts = ClassifierTopOne(str(ROOT / "src/mini/weights/classifier")), ["cat", "a picture of a dog", "fox"]
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first = judge.model(images * 2 - 1).logits.argmax(1).tolist()
    assert judge.score(images, [judge.names[k] for k in first]).tolist() == [1, 1, 1]
    wrong = [1.0 if judge.names[k] in prompt else 0.0 for k, prompt in zip(first, prompts, strict=True)]
    assert judge.score(images, prompts).tolist() == wrong


def test_missing_members_are_told(tmp_path):
    with pytest.raises(UserError, match="no members there"):
        GoldAnnotator(str(tmp_path))


def pool(n: int = 60) -> Pool:
    rng = torch.Generator().manual_seed(0)
    utility_ = torch.randn(n, generator=rng)
    return Pool(
        torch.zeros(n, 3, 64, 64, dtype=torch.uint8),
        torch.arange(n) % 3,
        utility_,
        utility_,
        torch.arange(n) % 2 == 0,
        ["cat", "dog", "bee"],
    )


def test_pairs_are_distinct_and_of_one_concept():
    data = pool()
    pairs = pairs_of(data, seed=0)
    assert (data.concept[pairs[:, 0]] == data.concept[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == len(pairs) == 180  # 20 pictures a concept, 3 rings
    assert len(pairs_of(pool(6), seed=0)) == 3  # of two pictures there is one pair, not two


def test_pairs_of_a_part_stay_in_it():
    data = pool()
    assert data.untouched[pairs_of(data, seed=0, keep=data.untouched)].all()


def test_labels_follow_bradley_terry_with_noise():
    n = 40_000
    for difference, noise in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.2), (-2.0, 0.05)):
        chance = 1 / (1 + math.exp(-difference / 2))
        expected = chance * (1 - noise) + (1 - chance) * noise
        labels = bradley_terry_labels(torch.full((n,), difference), temperature=2.0, label_noise=noise, seed=3)
        assert labels.mean().item() == pytest.approx(expected, abs=0.01)


def test_epochs_see_every_row_once_in_another_order():
    epochs = Epochs(10, 4, seed=0, make=lambda index: index)
    first, second = torch.cat(list(epochs)), torch.cat(list(epochs))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert torch.cat(list(Epochs(10, 4, seed=0, make=lambda index: index))).tolist() == first.tolist()
