"""What only shows over several steps, on a chain of Gaussians: gradients through a sampler, KL along a trajectory."""

import math

import pytest
import torch
from torch.distributions import Normal

from src.algorithms.alignprop import AlignProp
from src.algorithms.ddpo import DDPO
from src.algorithms.draft import DRaFT
from src.algorithms.grpo import GRPO
from src.algorithms.refl import ReFL
from src.normalise import EPS, PromptNormaliser
from src.policy.reference import Reference
from src.ranks import Ranks
from src.regularisers.base import trajectory_kl
from src.regularisers.kl_loss import KLLoss
from src.regularisers.kl_reward import KLReward
from src.types import Credit, Rows
from tests.bandit import Chain, Linear, rows_of
from tests.test_bandit import SHIFTED, D, G, S

STEPS = 4


def cost(algorithm, chain, regulariser=None, draw=0):
    """Of all samples, and the gradient in theta."""
    rollout, reference = chain.sample(16), Reference(chain)
    algorithm.moments = (0.0, 1.0)
    rows = rows_of(rollout, Credit(torch.zeros(16, chain.num_steps)), Linear(G), reference, draw)
    loss = algorithm.loss(rows, chain)
    value = loss.value if regulariser is None else loss.value + regulariser.loss(rows, loss, reference)
    return value, torch.autograd.grad(value, chain.theta)[0]


# ------------------------------------------------------------------------------------------------ through the sampler


@pytest.mark.parametrize("last", [1, 2, STEPS])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_draft_follows_its_last_steps(last, again):
    """d x_0 / d theta = 1 + a + ... + a^(K - 1), a = 0.9."""
    _, gradient = cost(DRaFT(last_steps=last, checkpoint_steps=again), Chain(STEPS, theta=SHIFTED, std=S))
    torch.testing.assert_close(gradient, -G * sum(0.9**k for k in range(last)), rtol=1e-4, atol=1e-5)


def test_alignprop_follows_the_steps_that_it_keeps():
    """One without a gradient passes on what does not go through the network, 0.3 of the state."""
    algorithm, seen = AlignProp(truncation="each_step"), set()
    for draw in range(12):
        kept = algorithm.kept(STEPS, draw)
        seen.add(tuple(kept))
        followed = torch.tensor(0.0)
        for keep in kept:
            followed = followed * (0.9 if keep else 0.3) + float(keep)
        _, gradient = cost(algorithm, Chain(STEPS, theta=SHIFTED, std=S), draw=draw)
        torch.testing.assert_close(gradient, -G * followed, rtol=1e-4, atol=1e-5)
    assert len(seen) > 3


def test_alignprops_cuts():
    """Each step with probability (i + 1) / (T + 1); one cut, uniform or N(42, 5) below 50. The last step is kept."""
    draws = range(2000)
    shares = torch.tensor([AlignProp(truncation="each_step").kept(9, d) for d in draws]).float().mean(0)
    torch.testing.assert_close(shares[:-1], torch.arange(1, 9) / 10, atol=0.04, rtol=0)
    uniform = torch.tensor([AlignProp(truncation="uniform").kept(10, d) for d in draws]).float()
    torch.testing.assert_close(uniform.mean(0), torch.arange(1, 11) / 10, atol=0.04, rtol=0)
    assert (uniform.diff() >= 0).all()  # one cut: all steps after it
    normal = torch.tensor([AlignProp().kept(50, d) for d in draws]).float()
    first = 50 - normal.sum(1)
    beyond = Normal(0.0, 1.0).log_prob(torch.tensor(1.6)).exp() / Normal(0.0, 1.0).cdf(torch.tensor(1.6))
    beyond = beyond.item()
    assert first.mean().item() == pytest.approx(42 - 5 * beyond - 0.5, abs=0.3)  # rounded down
    assert first.std().item() == pytest.approx(5 * (1 - 1.6 * beyond - beyond**2) ** 0.5, abs=0.3)
    assert shares[-1] == uniform[:, -1].mean() == normal[:, -1].mean() == 1


def test_refl_draws_one_of_the_last_steps():
    chain, algorithm, slots = Chain(8, theta=SHIFTED, std=S), ReFL(margin=None, scale=0.5), []
    rollout = chain.sample(4)
    for draw in range(60):
        rows = Rows(rollout, Credit(torch.zeros(4, 8)), torch.arange(4), torch.zeros(4, dtype=torch.long), draw=draw)
        pictures, (step,) = algorithm.denoise(rows, chain)
        slot = chain.timesteps.tolist().index(int(step.at.t[0]))
        torch.testing.assert_close(pictures, 0.6 * rollout.latents[:, slot] + chain.theta)  # what is predicted there
        slots.append(slot)
    assert set(slots) == {6, 7}


def test_lv_noises_x_0_to_the_last_steps_level_and_averages():
    chain, algorithm = Chain(2, theta=SHIFTED, std=S, alpha_bar=0.6), DRaFT(renoised=2)
    rollout = chain.sample(20_000)
    rows = rows_of(rollout, Credit(torch.zeros(20_000, 2)))
    first, *others = algorithm.denoise(rows, chain)[0].detach().chunk(3)
    torch.testing.assert_close(first, rollout.latents[:, -1])
    assert not torch.equal(*others)
    for again in others:
        variance = 0.9**2 * (0.6 * rollout.x_0.var(0) + 0.4) + S**2
        torch.testing.assert_close(again.var(0), variance, rtol=0.05, atol=0)
        torch.testing.assert_close(
            again.mean(0), 0.9 * math.sqrt(0.6) * rollout.x_0.mean(0) + SHIFTED, rtol=0, atol=0.03
        )
    torch.testing.assert_close(cost(algorithm, chain)[1], -G, rtol=1e-4, atol=1e-5)
    assert algorithm.gradients_a_sample == 3


# --------------------------------------------------------------------------------------------- KL along a trajectory


def test_a_trajectorys_kl_is_the_sum_of_its_steps():
    chain = Chain(STEPS, theta=SHIFTED, std=S)
    kl = trajectory_kl(chain.sample(5), chain.step_std)
    torch.testing.assert_close(kl, torch.full((5,), STEPS * SHIFTED.square().sum().item() / (2 * S**2)))


def test_a_step_pays_for_itself_and_those_after_it():
    chain = Chain(STEPS, theta=SHIFTED, std=S)
    rollout = chain.sample(6)
    own, base = (
        Normal(means, S).log_prob(rollout.latents[:, 1:]) for means in (rollout.means, rollout.reference_means)
    )
    ratios = (own - base).sum((2, 3, 4))
    to_go = torch.stack([ratios[:, k:].sum(1) for k in range(STEPS)], 1)
    penalty = KLReward(beta=0.5).penalty(rollout, chain.step_std, Ranks())
    torch.testing.assert_close(penalty, 0.5 * (to_go - to_go.mean(0)), rtol=1e-4, atol=1e-5)


def test_beside_a_policy_gradient_a_row_is_a_step_and_a_dimension():
    chain, algorithm = Chain(STEPS, theta=SHIFTED, std=S), DDPO(clip_range=1e9, advantage_clip=1e9)
    rollout, reference = chain.sample(6), Reference(chain)
    samples, slots = (grid.flatten() for grid in torch.meshgrid(torch.arange(6), torch.arange(STEPS), indexing="ij"))
    rows = Rows(rollout, Credit(torch.zeros(6, STEPS)), samples, slots, reference=reference)
    loss = KLLoss(beta=0.5).loss(rows, algorithm.loss(rows, chain), reference)
    torch.testing.assert_close(loss, 0.5 * SHIFTED.square().sum() / (2 * S**2) / D)


@pytest.mark.parametrize(
    "algorithm", [DRaFT(last_steps=3), AlignProp(truncation="uniform")], ids=["draft", "alignprop"]
)
def test_where_the_reward_is_followed_the_kl_is_that_of_the_steps_from_states_that_are_held(algorithm):
    """K |theta|^2 / 2 s^2, whose gradient is K theta / s^2: with states that move it would be more."""
    chain, draw = Chain(3, theta=SHIFTED, std=S), 1
    kept = 3 if isinstance(algorithm, DRaFT) else sum(algorithm.kept(3, draw))
    assert kept > 1
    bare, gradient = cost(algorithm, chain, draw=draw)
    value, penalised = cost(algorithm, chain, KLLoss(beta=0.5), draw=draw)
    torch.testing.assert_close(value - bare, 0.5 * kept * SHIFTED.square().sum() / (2 * S**2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(penalised - gradient, 0.5 * kept * SHIFTED / S**2, rtol=1e-4, atol=1e-5)


def test_guard_weighs_a_step_by_the_inverse_of_its_gain():
    """d log rho' / d theta = z / D at the policy that sampled; gains of 1 and 3 have the mean 2."""
    chain = Chain(2, theta=SHIFTED, std=S)
    chain.output_gains = lambda t: torch.tensor([1.0, 3.0])
    rollout, algorithm = chain.sample(8), GRPO(1e-4, 5.0, ratio="guard", guard_clip_range=9.0)
    for slot, weight in ((0, 2.0), (1, 2 / 3)):
        rows = Rows(rollout, Credit(torch.ones(8, 2)), torch.arange(8), torch.full((8,), slot))
        gradient = torch.autograd.grad(algorithm.loss(rows, chain).value, chain.theta)[0]
        torch.testing.assert_close(gradient, -weight * chain.drawn[:, slot + 1].mean(0) / D, rtol=1e-4, atol=1e-6)


def test_rewards_are_divided_by_the_spread_of_the_first_rollout():
    rewards = torch.tensor([1.0, 3.0])
    algorithm = DRaFT()
    assert algorithm.normalise(rewards, ["a", "b"], PromptNormaliser()).tolist() == pytest.approx(
        [-1 / (1 + EPS), 1 / (1 + EPS)]
    )
    assert algorithm.normalise(rewards + 2, ["a", "b"], PromptNormaliser()).tolist() == pytest.approx(
        [1 / (1 + EPS), 3 / (1 + EPS)]
    )
