"""TextNorm by hand, on a reward that knows its scores; its queries, contrasts and gradient."""

import pytest
import torch

from src.rewards.base import RewardModel
from src.rewards.text_norm import TextNormReward

ANIMALS = ["cat", "dog", "horse", "bird"]
GREYS = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1).expand(2, 3, 4, 4)


class Liking(RewardModel):
    """A picture's brightness, so many times for each animal."""

    embed_dim, sees_prompt = 1, True
    weights = {"cat": 1.0, "dog": 2.0, "horse": -1.0, "bird": 0.5, "a yak": 3.0}

    def forward(self, images, prompts):
        return images.mean((1, 2, 3)) * torch.tensor([self.weights[prompt] for prompt in prompts])


def test_it_is_the_share_of_the_prompt_among_its_contrasts():
    reward = TextNormReward([Liking()], ANIMALS, contrasts=2, tau=0.5)
    scores = reward.score(GREYS, ["cat", "bird"])
    first = torch.tensor([0.2 * 1, 0.2 * 2, 0.2 * -1]).div(0.5).exp()  # cat, then dog and horse
    second = torch.tensor([0.6 * 0.5, 0.6 * 1, 0.6 * 2]).div(0.5).exp()  # bird, then around: cat and dog
    torch.testing.assert_close(scores, torch.stack([first[0] / first.sum(), second[0] / second.sum()]))
    assert reward.queries == 3  # it has to be asked anew for each prompt


def test_contrasts_follow_the_prompt_around_the_end_and_are_never_it():
    reward = TextNormReward([Liking()], ANIMALS, contrasts=3)
    assert reward.contrasts_of("horse") == ["bird", "cat", "dog"]
    assert reward.contrasts_of("a yak") == ["cat", "dog", "horse"]


def test_its_gradient_is_that_of_finite_differences():
    reward, images = TextNormReward([Liking()], ANIMALS, contrasts=2), GREYS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(images, ["cat", "bird"], differentiable=True).sum(), images)
    step = torch.full_like(GREYS, 0.01)
    ahead, behind = (reward.score(GREYS + sign * step, ["cat", "bird"]).sum().item() for sign in (1, -1))
    assert (gradient * step).sum().item() == pytest.approx((ahead - behind) / 2, rel=1e-3)
