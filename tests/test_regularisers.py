"""GARDO, adaptive beta, group advantages, Guard's ratio, NFT's weights: exact values by hand."""

import math

import pytest
import torch

from src.algorithms.base import clipped_surrogate
from src.algorithms.grpo import GRPO, group_advantages, masked_surrogate
from src.algorithms.nft import NFT
from src.algorithms.preference import best_and_worst
from src.errors import UserError
from src.normalise import PromptNormaliser
from src.policy.reference import Reference
from src.ranks import Ranks
from src.regularisers.ema import EMA
from src.regularisers.gardo import GARDO, diversity_factors, gate_of, rank, suspicion
from src.regularisers.kl_loss import KLLoss
from src.regularisers.kl_reward import KLReward
from src.types import Credit
from tests.bandit import Bandit, Linear, rows_of

PAIR = ["cat", "cat", "dog", "dog"]


# ------------------------------------------------------------------------------------------------ group advantages


def test_group_advantages_by_hand():
    # cats 1, 3: mean 2, population sd 1; dogs 10, 14: mean 12, sd 2
    got, flat = group_advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), PAIR, "group", 0.0)
    assert got.tolist() == [-1, 1, -1, 1] and not flat.any()
    got, _ = group_advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), PAIR, "none", 9.0)
    assert got.tolist() == [-1, 1, -2, 2]
    sd = math.sqrt(((1 - 7) ** 2 + (3 - 7) ** 2 + (10 - 7) ** 2 + (14 - 7) ** 2) / 4)  # of all four, mean 7
    got, _ = group_advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), PAIR, "batch", 0.5)
    assert got.tolist() == pytest.approx([-1 / (sd + 0.5), 1 / (sd + 0.5), -2 / (sd + 0.5), 2 / (sd + 0.5)])


def test_group_advantages_of_ties_flat_groups_and_groups_of_one():
    rewards = torch.tensor([0.1, 0.1, 5.0, 5.0, 9.0, 7.0])
    got, flat = group_advantages(rewards, ["cat", "cat", "dog", "dog", "dog", "fox"], "group", 1e-8)
    assert got[:2].tolist() == [0, 0] and got[5] == 0  # exactly, whatever their mean rounds to
    assert got[2] == got[3] and got[4].item() == pytest.approx(math.sqrt(2))  # 5, 5, 9: mean 19/3
    assert flat.tolist() == [True, True, False, False, False, True]


def test_a_group_is_its_prompt_wherever_its_samples_lie():
    got, _ = group_advantages(torch.tensor([1.0, 10.0, 3.0, 14.0]), ["cat", "dog", "cat", "dog"], "group", 0.0)
    assert got.tolist() == [-1, -1, 1, 1]


def test_flat_groups_are_dropped_from_the_mean_on_request():
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0])
    for drop, wanted in ((False, [-1, 1, 0, 0]), (True, [-2, 2, 0, 0])):
        made = GRPO(1e-4, 5.0, eps=0.0, drop_flat=drop)
        returns = made.normalise(rewards, PAIR, PromptNormaliser())[:, None]
        assert made.credit(returns, torch.ones(1), None).advantages.flatten().tolist() == wanted


# -------------------------------------------------------------------------------------------- ratios and their clips


def test_an_asymmetric_clip_by_hand():
    # ratios 1.25, 1.25, 0.75; clip 0.1 below, 0.3 above; advantages 1, -1, -1
    out = clipped_surrogate(torch.tensor([1.25, 1.25, 0.75]).log(), torch.tensor([1.0, -1.0, -1.0]), 0.1, 0.3)
    assert out.value.item() == pytest.approx(-(1.25 - 1.25 - 0.9) / 3)
    assert out.ratios[1].tolist() == [0, 0, 1]


def guarded(theta: float, **options):
    """One row of a bandit with s = 0.5 in one dimension, sampled at theta 0, looked at from another theta."""
    bandit = Bandit((1, 1, 1), std=0.5)
    rollout = bandit.sample(4, seed=1)
    bandit.theta.data.fill_(theta)
    made = GRPO(1e-4, 5.0, **options)
    loss = made.loss(rows_of(rollout, Credit(torch.ones(4, 1))), bandit)
    return loss, rollout.latents[:, 1, 0, 0, 0]


def test_guards_ratio_by_hand():
    """log rho' = (log rho + dmu^2 / 2 s^2) s = x dmu / s: the same for all steps, and 0 on the average."""
    loss, x = guarded(0.1, ratio="guard", guard_clip_range=9.0)
    torch.testing.assert_close(loss.ratios[0].log(), x * 0.1 / 0.5)
    plain, _ = guarded(0.1)
    torch.testing.assert_close(plain.ratios[0].log(), (x * 0.1 - 0.1**2 / 2) / 0.5**2)


def test_rows_that_have_moved_too_far_are_dropped_if_they_would_move_on():
    ratio, advantage = torch.tensor([1.1, 1.1, 0.9, 0.9, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    far = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.4])
    out = masked_surrogate(ratio.log(), advantage, far, 0.5)
    assert out.ratios[1].tolist() == [1, 0, 0, 1, 0]
    assert out.value.item() == pytest.approx(-(-1.1 + 0.9 + 1.1) / 5)  # the dropped ones count as 0


def test_the_divergence_is_in_nats_over_all_dimensions():
    far, _ = guarded(0.5, trust="divergence", max_divergence=0.49)  # dmu^2 / 2 s^2 = 0.5
    near, _ = guarded(0.5, trust="divergence", max_divergence=0.51)
    assert far.ratios[1].any() and not near.ratios[1].any()


def test_guard_and_a_mask_are_one_too_many():
    with pytest.raises(UserError, match="choose one"):
        GRPO(1e-4, 5.0, ratio="guard", trust="divergence")


# -------------------------------------------------------------------------------------------------- NFT, preference


def test_nfts_weights_by_hand():
    """v_old 0, v = 0.2, beta 2: X+ = 0.4, X- = -0.4; squares over absolute errors, each a mean over dimensions."""
    bandit = Bandit((3, 1, 1), std=0.5, theta=0.2)
    rollout, made = bandit.sample(3, seed=2), NFT(beta=2.0, advantage_clip=5.0)
    made.old = [torch.zeros(3, 1, 1)]
    credit = made.credit(torch.tensor([[2.5], [-9.0], [0.0]]), torch.ones(1), None)
    x = rollout.latents[:, 1].flatten(1)
    r = torch.tensor([0.75, 0.0, 0.5])  # 1/2 + clip(A / 5, +-1) / 2
    better, worse = ((end - x).square().mean(1) / (end - x).abs().mean(1) for end in (0.4, -0.4))
    wanted = 5 / 2 * (r * better + (1 - r) * worse).mean()
    torch.testing.assert_close(made.loss(rows_of(rollout, credit), bandit).value, wanted)


def test_v_old_is_a_copy_at_first_and_slower_later():
    bandit, made = Bandit((1, 1, 1)), NFT(rise=0.1, most=0.5)
    with made.sampling(bandit):
        assert bandit.theta.item() == 0.0
    bandit.theta.data.fill_(1.0)
    assert made.after(bandit, 0) == {"nft/eta": 0.0} and made.old[0].item() == 1.0
    bandit.theta.data.fill_(2.0)
    assert made.after(bandit, 2)["nft/eta"] == pytest.approx(0.2) and made.old[0].item() == pytest.approx(1.8)
    assert made.after(bandit, 99)["nft/eta"] == 0.5
    with made.sampling(bandit):
        assert bandit.theta.item() == pytest.approx(1.9)
    assert bandit.theta.item() == 2.0


def test_the_best_is_paired_with_the_worst_of_its_group():
    worth, group = torch.tensor([3.0, 1.0, 2.0, 5.0, 5.0, 7.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    assert best_and_worst(worth, group).tolist() == [1, -1, -1, -1, -1, -1]  # ties and single samples make no pair
    partners = Credit(torch.zeros(4, 1), partners=torch.tensor([-1, -1, 3, -1]))
    assert partners.of(slice(2, 4)).partners.tolist() == [1, -1]


# ----------------------------------------------------------------------------------------------------- coefficients


def test_an_adaptive_beta_by_hand():
    reference = Reference(Bandit())
    regulariser = KLReward(beta=1.0, target=10.0, gain=0.1)
    for kl, wanted in ((11.0, 1.01), (20.0, 1.01 * 1.02), (0.0, 1.01 * 1.02 * 0.98), (10.0, 1.01 * 1.02 * 0.98)):
        regulariser.after(kl, 3, reference, 1)
        assert regulariser.beta == pytest.approx(wanted)
    per_dimension = KLLoss(beta=1.0, target=10.0, unit="dimension", gain=0.1)
    per_dimension.after(33.0, 3, reference, 1)  # 11 a dimension
    assert per_dimension.beta == pytest.approx(1.01)
    again = KLReward(beta=1.0, target=10.0)
    again.load_state_dict(regulariser.state_dict())
    assert again.beta == regulariser.beta


def test_the_reference_moves_when_it_is_due_or_too_far():
    bandit = Bandit(theta=0.3)
    reference, regulariser = Reference(bandit), KLLoss(beta=1.0, move_every=3, move_above=50.0)
    kls = [1.0, 60.0, 1.0, 1.0, 1.0, 1.0]
    moved = [regulariser.after(kl, 3, reference, k)["regulariser/moved"] for k, kl in enumerate(kls, 1)]
    assert moved == [0, 1, 0, 0, 1, 0]
    with reference.in_place():
        assert bandit.theta.flatten()[0].item() == pytest.approx(0.3)
    bandit.theta.data.fill_(0.5)
    with reference.in_place():
        assert bandit.theta.flatten()[0].item() == pytest.approx(0.3)
    assert bandit.theta.flatten()[0].item() == 0.5


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"beta": 1.0, "target": 0.0}, {"beta": 1.0, "move_every": 0}])
def test_bad_coefficients_are_told(bad):
    with pytest.raises(UserError, match=r"regulariser\."):
        KLLoss(**bad)


# ------------------------------------------------------------------------------------------------------------ GARDO


def test_ranks_share_their_mean_where_values_tie():
    assert rank(torch.tensor([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5, 1, 2.5, 4]


@pytest.mark.parametrize(("order", "gated"), [("ascending", [0, 0, 0, 1]), ("descending", [1, 0, 0, 0])])
def test_the_gate_opens_where_the_trained_reward_alone_likes_a_picture(order, gated):
    """And in the public code, which ranks from the best down, where the others alone do."""
    trained = torch.tensor([1.0, 2.0, 3.0, 4.0])
    others = [torch.tensor([4.0, 2.0, 3.0, 1.0]), torch.tensor([3.0, 2.0, 4.0, 1.0])]
    # ranks 1 2 3 4; others' mean ranks 3.5 2 3.5 1: u = -2.5 0 -0.5 3
    u = suspicion(trained, others, order)
    assert u.tolist() == ([-2.5, 0, -0.5, 3] if order == "ascending" else [2.5, 0, 0.5, -3])
    assert gate_of(u, 0.1).tolist() == gated  # of 0 and 3 the 0.9 quantile is 2.7; of 2.5, 0, 0.5 it is 2.1


def test_diversity_counts_for_good_samples():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    # cats: distances 1 and 1; fox: both copies of each other but one; here a group of three and one alone
    rewards, prompts = torch.tensor([2.0, 4.0, 3.0, 9.0]), ["cat", "cat", "cat", "dog"]
    # nearest: 0 (its copy), 1, 0: mean 1/3; good are those at or above 3
    assert diversity_factors(features, rewards, prompts).tolist() == pytest.approx([1, 3, 0, 1])


def made_gardo(**options) -> GARDO:
    auxiliaries = {"other": Linear(torch.ones(3, 1, 1))}
    return GARDO(auxiliaries, Linear(torch.ones(3, 1, 1)), beta=2.0, **options)


def test_the_quantile_follows_how_far_rewards_disagree():
    gardo = made_gardo()
    for mean, q in ((4.0, 0.1), (5.0, 0.11), (4.5, 0.11), (1.0, 0.099), (0.5, 0.0891)):
        gardo._adapt(torch.tensor([mean, -3.0]))
        assert gardo.q == pytest.approx(q)
    for k in range(30):
        gardo._adapt(torch.tensor([10.0 + k]))
    assert gardo.q == 0.2 and len(gardo.recent) == 20


def test_a_rollout_is_gated_by_the_quantile_that_it_moves():
    gardo, rollout = made_gardo(diversity=False, quantile=0.19), Bandit().sample(64)
    gardo.recent = [0.0]  # the rewards disagree more than they did
    rewards = torch.arange(64.0)
    looked = gardo.look(rollout, rewards, rollout.prompts, Ranks())
    u = suspicion(rewards, [gardo.auxiliaries["other"].score(rollout.images, rollout.prompts)])
    assert looked["gardo/quantile"] == gardo.q == 0.2
    assert gardo.gated.equal(gate_of(u, 0.2)) and not gardo.gated.equal(gate_of(u, 0.19))


def test_only_gated_rows_pay_and_their_mean_is_undiluted():
    """Two of four rows are gated: KL 0.02 and 0.02 nats of theta 0.1 with s 0.5, in one dimension; beta 2."""
    bandit = Bandit((1, 1, 1), std=0.5)
    rollout = bandit.sample(4)
    bandit.theta.data.fill_(0.1)
    gardo = made_gardo()
    gardo.gated = torch.tensor([True, False, False, True])
    rows = rows_of(rollout, Credit(torch.ones(4, 1)))
    loss = GRPO(1e-4, 5.0).loss(rows, bandit)
    assert gardo.loss(rows, loss, Reference(bandit)).item() == pytest.approx(2.0 * 0.02)
    gardo.gated = torch.zeros(4, dtype=torch.bool)
    assert gardo.loss(rows, loss, Reference(bandit)).item() == 0.0


# -------------------------------------------------------------------------------------------------------------- EMA


def test_an_average_of_weights_by_hand():
    bandit, ema = Bandit((1, 1, 1)), EMA(decay=0.9, every=2)
    ema.begun(bandit)
    wanted = 0.0
    for k in range(1, 7):
        bandit.theta.data.fill_(float(k))
        ema.stepped(bandit)
        if k % 2 == 0:
            decay = min((1 + k) / (10 + k), 0.9)
            wanted = decay * wanted + (1 - decay) * k
        assert ema.averaged[0].item() == pytest.approx(wanted)
    again = EMA(decay=0.9, every=2)
    again.load_state_dict(ema.state_dict())
    again.begun(bandit)
    assert again.averaged[0].item() == pytest.approx(wanted) and again.steps == 6
