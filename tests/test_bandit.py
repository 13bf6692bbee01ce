"""Every algorithm and regulariser on a one-step Gaussian bandit: expected gradients and optima against closed forms."""

import math

import pytest
import torch

from src.algorithms.alignprop import AlignProp
from src.algorithms.d3po import D3PO
from src.algorithms.ddpo import DDPO
from src.algorithms.dpo_online import OnlineDPO
from src.algorithms.dpok import DPOK
from src.algorithms.draft import DRaFT
from src.algorithms.grpo import GRPO
from src.algorithms.nft import NFT
from src.algorithms.refl import ReFL
from src.algorithms.tdpo import TDPO
from src.normalise import EPS, PromptNormaliser
from src.policy.reference import Reference
from src.ranks import Ranks
from src.regularisers.gardo import GARDO
from src.regularisers.kl_loss import KLLoss
from src.regularisers.kl_reward import KLReward
from src.regularisers.none import NoRegulariser
from src.types import Credit, Rows
from tests.bandit import Bandit, Linear, rows_of

G = torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)
D, S, N = 3, 0.5, 100_000
WIDE = {"clip_range": 1e9, "advantage_clip": 1e9}
FEWER = [10_000, pytest.param(N, marks=pytest.mark.slow)]  # where a row's own noise takes time
SHIFTED = torch.tensor([0.05, 0.1, -0.1]).view(3, 1, 1)


def worth(rollout, g=G):
    return (rollout.latents[:, -1] * g).sum((1, 2, 3))


def loss_of(algorithm, bandit, rollout, regulariser=None, rewards=None):
    """The loss of all rows of a rollout, credited with raw rewards as the algorithm and the regulariser have it."""
    regulariser, reference = regulariser or NoRegulariser(), Reference(bandit)
    rewards = worth(rollout) if rewards is None else rewards
    returns, penalty = rewards[:, None], regulariser.penalty(rollout, bandit.step_std, Ranks())
    values = torch.zeros_like(returns) if algorithm.uses_critic else None
    credit = algorithm.credit_less(penalty, returns, bandit.step_std, values)
    rows = rows_of(rollout, credit, Linear(G), reference)
    loss = algorithm.loss(rows, bandit)
    extra = regulariser.loss(rows, loss, reference)
    return loss.value if extra is None else loss.value + extra


def estimated_gradient(algorithm, bandit, regulariser=None, group=1, chunks=100, rewards_of=worth, n=N):
    """Mean of the loss's gradient over n samples, and its standard error."""
    gradients = []
    for k in range(chunks):
        rollout = bandit.sample(n // chunks, group, seed=k)
        algorithm.normalise(rewards_of(rollout), rollout.prompts, PromptNormaliser())
        loss = loss_of(algorithm, bandit, rollout, regulariser, rewards_of(rollout))
        gradients.append(torch.autograd.grad(loss, bandit.theta)[0])
    every = torch.stack(gradients)
    return every.mean(0), every.std(0) / chunks**0.5


def assert_gradient(estimate, analytic):
    mean, error = estimate
    assert ((mean - analytic).abs() < 3 * error + 1e-7).all(), (mean.flatten(), analytic.flatten(), error.flatten())
    assert (error < 0.1 * analytic.abs().max()).all()  # or it would show nothing


# ---------------------------------------------------------------------------------------------- expected gradients


@pytest.mark.parametrize(
    "algorithm",
    [DDPO(**WIDE), GRPO(**WIDE, std="none"), GRPO(**WIDE, std="none", trust="divergence")],
    ids=["ddpo", "grpo", "grpo masked"],
)
def test_a_policy_gradient_is_g_over_the_dimensions(algorithm):
    """d/dtheta of -E[r rho]: -g, divided by D because log-probabilities are means over dimensions."""
    assert_gradient(estimated_gradient(algorithm, Bandit(std=S)), -G / D)


def test_tdpos_is_that_of_the_standardised_return():
    sd = S * G.norm()
    algorithm = TDPO(clip_range=1e9, value_clip_range=1.0, advantage_clip=1e9)
    assert_gradient(estimated_gradient(algorithm, Bandit(std=S)), -G / D / sd)


def test_a_groups_own_mean_as_a_baseline_takes_a_share_off():
    """Of G samples: the mean has the sample itself in it, which costs 1 / G of the gradient."""
    algorithm = GRPO(**WIDE, std="none")
    estimate = estimated_gradient(algorithm, Bandit(std=S), group=5, rewards_of=centred_in_groups_of_five)
    assert_gradient(estimate, -G / D * (1 - 1 / 5))


def centred_in_groups_of_five(rollout):
    rewards = worth(rollout).view(-1, 5)
    return (rewards - rewards.mean(1, keepdim=True)).flatten()


def test_guards_ratio_has_sigma_times_the_gradient():
    algorithm = GRPO(**WIDE, std="none", ratio="guard", guard_clip_range=1e9)
    assert_gradient(estimated_gradient(algorithm, Bandit(std=S)), -G / D * S)


@pytest.mark.parametrize("regulariser", [KLReward, KLLoss])
def test_a_kl_penalty_takes_beta_theta_over_the_variance_off(regulariser):
    """-(g - beta theta / s^2) / D away from the base, in the reward and in the loss alike."""
    beta = 0.7
    bandit = Bandit(std=S, theta=SHIFTED)
    estimate = estimated_gradient(DDPO(**WIDE), bandit, regulariser(beta=beta))
    assert_gradient(estimate, -(G - beta * SHIFTED / S**2) / D)


def test_dpoks_gradient_has_its_two_weights():
    bandit = Bandit(std=S, theta=SHIFTED)
    estimate = estimated_gradient(DPOK(1e9, reward_weight=3.0, kl_weight=0.5, rewards="raw"), bandit)
    assert_gradient(estimate, -(3 * G - 0.5 * SHIFTED / S**2) / D)


def test_d3pos_gradient():
    """-(beta / 2) E[x_w - x_l] / (D s^2); the better of two is 2 s / sqrt(pi) further along g."""
    algorithm = D3PO(beta=0.4, clip_range=0.9)
    estimate = estimated_gradient(algorithm, Bandit(std=S), group=2)
    assert_gradient(estimate, -0.4 / (D * S * math.sqrt(math.pi)) * G / G.norm())


def test_d3pos_steps_are_weighed():
    algorithm, bandit = D3PO(timestep_weighting="variance"), Bandit(std=S, theta=0.1)
    rollout = bandit.sample(2, group=2)
    algorithm.normalise(worth(rollout), rollout.prompts, PromptNormaliser())
    algorithm.credit(torch.ones(2, 2), torch.tensor([3.0, 1.0]), None)
    torch.testing.assert_close(algorithm.step_weights, torch.tensor([1.8, 0.2]))  # sigma^2 9 and 1, mean 5
    credit = algorithm.credit(worth(rollout)[:, None], bandit.step_std, None)
    rows = Rows(rollout, credit, torch.tensor([credit.partners.argmax()]), torch.tensor([0]))
    alone = algorithm.loss(rows, bandit).value
    algorithm.step_weights = torch.tensor([3.0])
    torch.testing.assert_close(algorithm.loss(rows, bandit).value, 3 * alone)


@pytest.mark.parametrize("n", FEWER)
def test_online_dpos_gradient(n):
    """-(beta / 4) E[d(e_l - e_w)/d theta], e = k |x_0 - theta|^2 / D with k = alpha_bar / (1 - alpha_bar)."""
    algorithm, k = OnlineDPO(beta=2.0), 0.6 / 0.4
    estimate = estimated_gradient(algorithm, Bandit(std=S), group=2, chunks=20, n=n)
    assert_gradient(estimate, -2.0 * k / (2 * D) * 2 * S / math.sqrt(math.pi) * G / G.norm())


def test_nft_weighs_no_sample_below_zero():
    """Advantages of whatever size, as GARDO's factors may make them: r is within 0 and 1."""
    bandit, algorithm = Bandit(std=S, theta=0.1), NFT(advantage_clip=1.0)
    rollout = bandit.sample(2)
    losses = [
        algorithm.loss(rows_of(rollout, Credit(torch.tensor([[a], [-a]])), Linear(G), Reference(bandit)), bandit).value
        for a in (1.0, 7.0)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("n", FEWER)
def test_nfts_gradient_is_that_of_weighted_flow_matching_whatever_beta(n):
    """2 E[A (theta - x_0) / |x_0|] in one dimension, with A = g x_0: -2 g E|x_0| = -2 g s sqrt(2 / pi)."""
    scaled = lambda rollout: worth(rollout, torch.tensor(0.3))  # noqa: E731
    for beta in (1.0, 0.1):
        bandit = Bandit((1, 1, 1), std=S)
        algorithm = NFT(beta=beta, std="none")
        estimate = estimated_gradient(algorithm, bandit, chunks=20, rewards_of=scaled, n=n)
        assert_gradient(estimate, torch.tensor(-2 * 0.3 * S * math.sqrt(2 / math.pi)).view(1, 1, 1))


@pytest.mark.parametrize("algorithm", [DRaFT(), AlignProp()], ids=["draft", "alignprop"])
def test_the_gradient_through_the_reward_is_exact(algorithm):
    bandit = Bandit(std=S, theta=SHIFTED)
    rollout = bandit.sample(64)
    algorithm.normalise(worth(rollout), rollout.prompts, PromptNormaliser())
    gradient = torch.autograd.grad(loss_of(algorithm, bandit, rollout), bandit.theta)[0]
    torch.testing.assert_close(gradient, -G / (worth(rollout).std(correction=0) + EPS), rtol=1e-5, atol=1e-5)


def test_refls_gradient_stops_at_its_margin():
    bandit, algorithm = Bandit(std=S, theta=SHIFTED), ReFL(scale=0.1)
    algorithm.moments = (0.0, 0.5)
    rollout = bandit.sample(64)
    gradient = torch.autograd.grad(loss_of(algorithm, bandit, rollout), bandit.theta)[0]
    torch.testing.assert_close(gradient, -0.1 * G / 0.5, rtol=1e-4, atol=1e-5)
    algorithm.moments = (-9.0, 0.5)  # everything is better than the margin
    assert not torch.autograd.grad(loss_of(algorithm, bandit, rollout), bandit.theta)[0].any()


# ---------------------------------------------------------------------------------------------------------- optima


def optimum(algorithm, regulariser=None, steps=400, lr=1.0, samples=4096):
    """theta after gradient descent on fresh samples, averaged over the later half."""
    bandit, path = Bandit(std=S), []
    for k in range(steps):
        rollout = bandit.sample(samples, seed=k)
        gradient = torch.autograd.grad(loss_of(algorithm, bandit, rollout, regulariser), bandit.theta)[0]
        bandit.theta.data -= lr * gradient
        if k >= steps // 2:
            path.append(bandit.theta.detach().clone())
        if regulariser is not None:
            regulariser.after((bandit.theta.detach().square().sum() / (2 * S**2)).item(), D, Reference(bandit), k + 1)
    return torch.stack(path).mean(0)


def assert_near(theta, wanted, share=0.02):
    assert (theta - wanted).norm() < share * wanted.norm(), (theta.flatten(), wanted.flatten())


def ungated_gardo(beta: float) -> GARDO:
    """All samples pay."""
    return GARDO({}, Linear(G), beta=beta, gate=False, diversity=False)


@pytest.mark.parametrize("regulariser", [KLReward, KLLoss, ungated_gardo])
@pytest.mark.parametrize(
    "algorithm",
    [DDPO(**WIDE), GRPO(**WIDE, std="none"), GRPO(**WIDE, std="none", trust="divergence", max_divergence=1e9)],
    ids=["ddpo", "grpo", "grpo masked"],
)
def test_the_optimum_under_a_kl_penalty_is_sigma_squared_g_over_beta(algorithm, regulariser):
    """A KL over the mean of dimensions where the sum is meant would be off by D = 3, a missing factor of two by 2."""
    beta = 0.5
    assert_near(optimum(algorithm, regulariser(beta=beta)), S**2 * G / beta)


@pytest.mark.parametrize(
    "algorithm", [DRaFT(), AlignProp(), ReFL(margin=None, scale=0.5)], ids=["draft", "alignprop", "refl"]
)
def test_so_it_is_where_the_reward_is_followed(algorithm):
    """In nats of all dimensions, beside a reward in standard deviations, which here are 0.8."""
    beta, algorithm.moments = 0.5, (0.0, 0.8)
    assert_near(optimum(algorithm, KLLoss(beta=beta), lr=0.3), S**2 * G / 0.8 / beta)


def test_dpoks_optimum_is_sigma_squared_g_times_the_ratio_of_its_weights():
    assert_near(optimum(DPOK(1e9, reward_weight=2.0, kl_weight=1.0, rewards="raw")), S**2 * G * 2)


@pytest.mark.parametrize("unit", ["trajectory", "dimension"])
def test_an_adaptive_beta_finds_its_target(unit):
    """The best policy at a KL of k nats: theta = s sqrt(2 k) along g."""
    k = 0.02
    regulariser = KLLoss(beta=1.0, target=k / (D if unit == "dimension" else 1), unit=unit, gain=1.0)
    theta = optimum(DDPO(**WIDE), regulariser, steps=600)
    assert_near(theta, S * math.sqrt(2 * k) * G / G.norm(), share=0.05)


@pytest.mark.parametrize(
    "algorithm",
    [
        DDPO(**WIDE),
        GRPO(**WIDE, std="none"),
        D3PO(beta=1.0, clip_range=0.9),
        OnlineDPO(beta=2.0),
        NFT(std="none"),
        DRaFT(),
        AlignProp(),
        ReFL(margin=None),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_a_step_goes_along_g(algorithm):
    bandit = Bandit(std=S)
    rollout = bandit.sample(4096, group=4)
    algorithm.normalise(worth(rollout), rollout.prompts, PromptNormaliser())
    step = -torch.autograd.grad(loss_of(algorithm, bandit, rollout), bandit.theta)[0]
    assert torch.nn.functional.cosine_similarity(step.flatten(), G.flatten(), dim=0) > 0.95
