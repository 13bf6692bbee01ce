import pytest
import torch
from transformers import CLIPModel

from src.config import check
from src.errors import UserError
from src.rewards.base import RewardModel
from src.rewards.building import build_rewards
from src.rewards.clip import CLIPReward
from tests.conftest import ROOT, composed

PATH = str(ROOT / "src/mini/weights/clip")


@pytest.fixture(scope="module")
def reward() -> CLIPReward:
    return CLIPReward(PATH)


def pictures(n: int, size: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_score_equals_transformers_own_clip(reward):
    images, prompts = pictures(3), ["cat", "dog", "a bee"]
    clip = CLIPModel.from_pretrained(PATH, dtype=torch.float32).eval()
    tokens = reward.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = clip(input_ids=tokens, pixel_values=images * 2 - 1).logits_per_image.diag()
    torch.testing.assert_close(reward.score(images, prompts), expected, atol=1e-4, rtol=1e-4)


def test_batch_composition_changes_no_score(reward):
    images, prompts = pictures(5), ["cat", "dog", "cat", "fox", "bee"]
    alone = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(reward.score(images, prompts), alone, atol=1e-5, rtol=1e-5)


def test_other_sizes_are_resized(reward):
    assert reward.score(pictures(2, 96), ["cat", "dog"]).shape == (2,)


def test_scores_are_differentiable_in_the_pictures(reward):
    images = pictures(1).requires_grad_()
    reward(images, ["cat"]).sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def of_the_suite() -> dict[str, RewardModel]:
    """In float64, as far as scores go."""
    cfg = check(composed("train_reward=[hps,aesthetic]", "+wrapper=text_norm", "policy=lora"))
    return {name: reward.double() for name, reward in build_rewards(cfg["suite"]["rewards"]).items()}


@pytest.mark.parametrize("name", ["hps", "pickscore", "imagereward", "aesthetic", "text_norm", "mixed"])
def test_its_gradient_is_that_of_finite_differences(of_the_suite, name):
    reward, prompts = of_the_suite[name], ["cat", "dog"]
    images = (0.25 + 0.5 * pictures(2, 50)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, prompts).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).double()
    ahead, behind = (reward(images + sign * 1e-5 * direction, prompts).sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(
        (ahead - behind).item() / 2e-5, rel=5e-3
    )  # scores are in float32


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (pictures(2) * 255, ["a", "b"], r"\[0, 1\]"),
        (torch.full((1, 3, 64, 64), torch.nan), ["a"], r"\[0, 1\]"),
        (pictures(2), ["a"], "as many prompts"),
        (pictures(2)[:, :1], ["a", "b"], "3, height, width"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(reward, images, prompts, message):
    with pytest.raises(ValueError, match=message) as told:
        reward.score(images, prompts)
    assert "\n" not in str(told.value)


def test_missing_weights_are_named():
    with pytest.raises(UserError, match="/nowhere"):
        CLIPReward("/nowhere")
