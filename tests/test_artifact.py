"""The artifact reward: what it tells apart, its gradient, and how it is added to another reward and trained."""

import pytest
import torch

from src.config import check
from src.errors import UserError
from src.mini.artifact import ArtifactStage, held_out
from src.mini.corruptions import CORRUPTIONS, corrupt
from src.mini.data import EmojiData
from src.mini.evaluate import WEIGHTS, sample
from src.rewards.artifact import ArtifactReward
from src.tasks.building import build_finetuner
from tests.conftest import composed

PROMPTS = ["cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird"] * 2
ADDED = ("+reward=artifact", "train_reward=[hps,artifact]", "train_weights=[1,0.5]")


@pytest.fixture(scope="module")
def reward() -> ArtifactReward:
    return ArtifactReward(str(WEIGHTS / "artifact"))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return sample(WEIGHTS / "base", PROMPTS, steps=10, guidance=1.0)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_broken_samples_score_lower(reward, pictures, kind):
    n = len(pictures)
    broken = corrupt(pictures, torch.full((n,), 0.8), [kind] * n, torch.Generator().manual_seed(0))
    before, after = reward.score(pictures, PROMPTS), reward.score(broken, PROMPTS)
    assert (after < before).float().mean() >= 0.75
    assert (before > 0).float().mean() > 0.5


def test_the_score_is_the_log_odds_and_goes_by_the_picture_alone(reward, pictures):
    with torch.no_grad():
        p = reward.model(pictures * 2 - 1).logits.softmax(-1)
    torch.testing.assert_close(reward.score(pictures, PROMPTS), (p[:, 1] / p[:, 0]).log(), atol=1e-3, rtol=1e-3)
    assert torch.equal(reward.score(pictures, PROMPTS), reward.score(pictures, PROMPTS[::-1]))
    embedded, scores = reward.embed_and_score(pictures, PROMPTS)
    assert embedded.shape == (len(pictures), reward.embed_dim)
    torch.testing.assert_close(scores, reward.score(pictures, PROMPTS))


def test_its_gradient_is_that_of_finite_differences():
    reward = ArtifactReward(str(WEIGHTS / "artifact")).double()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:2]).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    ahead, behind = (reward(images + sign * 1e-6 * direction, PROMPTS[:2]).sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind).item() / 2e-6, rel=1e-4)


def test_it_is_no_part_of_the_suite_unless_it_is_added():
    assert "artifact" not in check(composed())["suite"]["rewards"]
    cfg = check(composed(*ADDED, "policy=lora", "algorithm=ddpo"))
    assert list(cfg["suite"]["rewards"]) == ["hps", "pickscore", "imagereward", "aesthetic", "artifact", "mixed"]
    finetuner, rewards = build_finetuner(cfg)
    assert finetuner.reward.queries == 2 and finetuner.reward_members == ["hps", "artifact"]
    images, moments = torch.rand(2, 3, 64, 64), cfg["suite"]["base_moments"]
    alone = [
        (rewards[name].score(images, ["cat", "dog"]) - moments[name]["mean"]) / moments[name]["std"]
        for name in ("hps", "artifact")
    ]
    torch.testing.assert_close(finetuner.reward.score(images, ["cat", "dog"]), alone[0] + 0.5 * alone[1])


@pytest.mark.parametrize(("path", "message"), [("classifier", "labels are not broken and sound"), ("none", "missing")])
def test_other_weights_are_refused(path, message):
    with pytest.raises(UserError, match=message):
        ArtifactReward(str(WEIGHTS / path))


def test_it_learns_from_half_sound_and_half_broken_pictures_none_of_which_it_is_measured_on(monkeypatch):
    """Pictures are told by their colour: those that are held out are black, and the others white."""
    images = torch.full((40, 3, 64, 64), 255, dtype=torch.uint8)
    images[::10] = 0
    emoji = EmojiData(images, torch.arange(40) % 2, torch.zeros(40, dtype=torch.long), ("cat", "dog"), 2)
    assert len(held_out(emoji, True).images) == 4 and held_out(emoji, True).images.eq(0).all()
    monkeypatch.setattr("src.mini.stage.load_emoji", lambda folder: emoji)
    options = {"hidden_sizes": [4, 8], "least_severity": 0.2, "smoothing": 0.05, "bank_size": 8, "export_dir": ""}
    kw = {"data_dir": "", "weights_dir": str(WEIGHTS), "steps": 1, "batch_size": 32, "lr": 1e-3, "seed": 0}
    stage = ArtifactStage(**options, **kw)
    drawn, sound = stage.draw(torch.Generator().manual_seed(0))
    assert drawn.shape == (32, 3, 64, 64) and sound.tolist() == [0] * 16 + [1] * 16
    assert drawn[24:].eq(1).all()  # real ones, as they are
    assert drawn[16:24].min() > 0.9  # as the base's decoder draws them
    assert (drawn[:16].flatten(1).std(1) > 0.05).sum() >= 2  # not every corruption shows on white
