"""Reward models that learn from preferences: losses by hand, learning, saving, and the command."""

import json
import math
from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from src.config import check
from src.errors import UserError
from src.rewards.aesthetic import AestheticReward
from src.rewards.base import Comparisons, Ratings, RewardModel
from src.rewards.clip import CLIPReward
from src.rewards.ensemble import EnsembleReward, combined
from src.rewards.image_text import FreshImageTextReward, ImageTextReward
from src.tasks.building import build_finetuner
from tests.conftest import ROOT, composed
from tests.forked import run_forked

CLIP = str(ROOT / "src/mini/weights/clip")


def image_text() -> FreshImageTextReward:
    return FreshImageTextReward(CLIP, text_layers=1, head=[16], seed=0)


FAMILIES = {"clip": lambda: CLIPReward(CLIP), "image_text": image_text, "aesthetic": lambda: AestheticReward(CLIP)}


class Brightness(RewardModel):
    embed_dim = 3

    def forward(self, images, prompts):
        return images.mean((1, 2, 3)) * 10


def grey(*levels: float) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 64, 64)


def test_loss_is_bradley_terrys():
    batch = Comparisons(grey(0.2, 0.5), grey(0.1, 0.7), ["a", "b"], torch.tensor([1.0, 1.0]))
    # margins +1 and -2, the first picture preferred in both
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert Brightness().loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_centring_adds_the_variance_of_pair_means():
    batch = Comparisons(grey(0.4, 0.1), grey(0.2, 0.7), ["a", "b"], torch.tensor([1.0, 0.0]))
    reward = Brightness()
    plain = reward.loss(batch).item()
    reward.centering = 2.0
    means = (reward(batch.first, batch.prompts) + reward(batch.second, batch.prompts)) / 2
    spread = ((means[0] - means[1]) / 2).item() ** 2  # of two values
    assert spread > 0 and reward.loss(batch).item() == pytest.approx(plain + 2 * spread, rel=1e-5)


def test_aesthetic_loss_is_the_squared_error_of_ratings():
    reward = AestheticReward(CLIP)
    images = torch.rand(2, 3, 64, 64)
    scores = reward.score(images, ["", ""])
    loss = reward.loss(Ratings(images, scores + torch.tensor([1.0, 3.0])))
    assert loss.item() == pytest.approx(5.0, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_saves_and_loads(family, tmp_path):
    """It comes to prefer dark pictures of one colour to bright ones, whichever it preferred before."""
    reward, rng = FAMILIES[family](), torch.Generator().manual_seed(0)

    def pictures(low: float, n: int) -> torch.Tensor:
        return (low + 0.2 * torch.rand(n, 3, 1, 1, generator=rng)).expand(n, 3, 64, 64)

    def batch(n: int = 8):
        dark, bright, swap = pictures(0.1, n), pictures(0.7, n), torch.rand(n, 1, 1, 1, generator=rng) < 0.5
        if family == "aesthetic":
            return Ratings(torch.cat([dark, bright]), torch.cat([torch.ones(n), -torch.ones(n)]))
        first, second = torch.where(swap, bright, dark), torch.where(swap, dark, bright)
        return Comparisons(first, second, ["cat", "dog"] * (n // 2), (~swap).float().flatten())

    reward.optimizer = partial(torch.optim.AdamW, lr=1e-2 if family == "aesthetic" else 3e-4)
    data = DataLoader([batch() for _ in range(40)], batch_size=None)
    options = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
    Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options).fit(reward, data)
    reward.eval()
    dark, bright, prompts = pictures(0.1, 20), pictures(0.7, 20), ["cat", "fox"] * 10
    assert (reward.score(dark, prompts) > reward.score(bright, prompts)).float().mean() >= 0.95
    reward.save(tmp_path / "reward")
    path = str(tmp_path / "reward")
    kinds = {"clip": CLIPReward, "image_text": ImageTextReward, "aesthetic": lambda p: AestheticReward(CLIP, p)}
    loaded = kinds[family](path)
    torch.testing.assert_close(
        loaded.score(dark, prompts), reward.float().score(dark, prompts), atol=0.05, rtol=0.02
    )  # stored in half precision


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_composition_changes_no_score(family):
    reward, prompts = FAMILIES[family](), ["cat", "dog", "cat", "fox", "bee"]
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(reward.score(images, prompts), alone, atol=1e-5, rtol=1e-5)
    other = reward.score(images, prompts[1:] + prompts[:1])
    assert torch.allclose(other, alone, atol=1e-5) == (family == "aesthetic")  # which alone looks at no prompt


def test_ensembles_by_hand():
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert combined(scores, "mean", 0.5).tolist() == [2, 0]
    assert combined(scores, "worst", 0.5).tolist() == [1, 0]
    assert combined(scores, "uncertainty", 0.5).tolist() == [1.5, 0]  # population variance 1
    ensemble = EnsembleReward([Brightness(), Brightness()], "worst", centres=[1.0, 2.0], scales=[1.0, 0.5])
    # brightness 3: (3 - 1) / 1 = 2 and (3 - 2) / 0.5 = 2; brightness 1: 0 and -2
    torch.testing.assert_close(ensemble.score(grey(0.3, 0.1), ["", ""]), torch.tensor([2.0, -2.0]))


def test_members_score_in_batches_of_their_own_size():
    seen = []

    class Counting(Brightness):
        batch_size = 2

        def forward(self, images, prompts):
            seen.append(len(images))
            return super().forward(images, prompts)

    EnsembleReward([Counting(), Brightness()], "mean", [0.0, 0.0], [1.0, 1.0]).score(grey(*[0.1] * 5), [""] * 5)
    assert seen == [2, 2, 1]


def test_a_member_that_is_a_reward_of_the_suite_is_loaded_once():
    finetuner, rewards = build_finetuner(check(composed("+experiment=tdpo_r_ensemble")))
    assert list(rewards) == ["hps", "pickscore", "imagereward", "aesthetic", "ensemble"]
    assert [member is rewards[name] for member, name in zip(rewards["ensemble"].members, rewards, strict=False)] == [
        True
    ] * 3
    assert finetuner.reward_members == ["hps", "pickscore", "imagereward"]


@pytest.mark.parametrize(
    ("members", "centres", "scales", "message"),
    [(1, [0.0], [1.0], "two members or more"), (2, [0.0, 0.0], [1.0, 0.0], "must be positive")],
)
def test_wrong_ensembles_are_told(members, centres, scales, message):
    with pytest.raises(UserError, match=message):
        EnsembleReward([Brightness() for _ in range(members)], "mean", centres, scales)


@pytest.mark.parametrize("family", [ImageTextReward, lambda path: AestheticReward(CLIP, path)])
def test_missing_folders_are_told(family):
    with pytest.raises(UserError, match="/nowhere"):
        family("/nowhere")


def test_the_command_trains_reports_and_writes_a_reward(tmp_path):
    folders = [f"reward_training.data.folder={tmp_path}/pools", f"run_dir={tmp_path}/run"]
    done = run_forked("+experiment=train_reward_hps", "+debug=tiny", *folders)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 0 <= summary["test"]["mixed"]["clear"] <= 1 and summary["test"]["mixed"]["pairs"] > 40
    reward = CLIPReward(str(tmp_path / "run/reward"))
    assert reward.score(torch.rand(1, 3, 64, 64), ["cat"]).shape == (1,)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "val/loss"} <= {key for row in rows for key in row}
    assert len(list((tmp_path / "pools").glob("*.npz"))) == 2


def test_a_judge_cannot_be_trained_on():
    done = run_forked("+experiment=tdpo_r_hps", "train_reward=gold")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: train_reward=gold is a judge: it evaluates, and no policy trains on it."
