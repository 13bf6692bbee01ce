import math

import pytest
import torch

from src.algorithms.base import clipped_surrogate, clipped_value_loss
from src.algorithms.d3po import D3PO
from src.algorithms.ddpo import DDPO
from src.algorithms.dpok import DPOK
from src.algorithms.nft import NFT
from src.algorithms.tdpo import TDPO
from src.errors import UserError
from src.normalise import PromptNormaliser, standardise


def returns_of(*rewards: float, steps: int) -> torch.Tensor:
    """Each reward as the return of every step."""
    return torch.tensor(rewards)[:, None].expand(-1, steps)


TDPO_ARGS = {"clip_range": 1e-4, "value_clip_range": 0.2, "advantage_clip": 5.0}


def test_surrogate_by_hand():
    # ratios 1.5, 0.5, 1.5, 0.5, 1; clip 0.2; advantages +1, +1, -1, -1, +2
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.0])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0])
    out = clipped_surrogate(ratio.log(), advantage, 0.2)
    # min(rA, clip(r)A): 1.2, 0.5, -1.5, -0.8, 2 -> mean 0.28
    assert out.value.item() == pytest.approx(-0.28)
    assert out.ratios[1].tolist() == [1, 0, 0, 1, 0]
    torch.testing.assert_close(out.ratios[0], ratio)


def test_gradient_raises_the_good_and_lowers_the_bad():
    log_prob = torch.zeros(2, requires_grad=True)
    clipped_surrogate(log_prob, torch.tensor([1.0, -1.0]), 0.2).value.backward()
    assert log_prob.grad.tolist() == [-0.5, 0.5]  # descent moves the first up, the second down


def test_clipped_rows_have_no_gradient():
    log_prob = torch.tensor([math.log(1.5), math.log(0.5)], requires_grad=True)
    clipped_surrogate(log_prob, torch.tensor([1.0, -1.0]), 0.2).value.backward()
    assert log_prob.grad.tolist() == [0, 0]


def test_zero_advantage_zero_gradient():
    log_prob = torch.randn(8, requires_grad=True)
    clipped_surrogate(log_prob, torch.zeros(8), 0.2).value.backward()
    assert log_prob.grad.eq(0).all()


def test_value_loss_by_hand():
    # V 1.0, old 0.5, clip 0.2 -> near 0.7; G 0: max(1, .49)/2; G 2: max(1, 1.69)/2; mean (.5 + .845)/2
    value, old, target = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([0.0, 2.0])
    assert clipped_value_loss(value, old, target, 0.2).item() == pytest.approx((0.5 + 0.845) / 2)


def test_ddpo_credits_all_steps_alike_and_clips():
    credit = DDPO(clip_range=1e-4, advantage_clip=5.0).credit(returns_of(-9.0, 1.0, steps=3), torch.ones(3), None)
    assert credit.advantages.tolist() == [[-5.0] * 3, [1.0] * 3]
    assert credit.values is None and credit.returns is None


def test_tdpo_credit_by_hand():
    rewards, values = returns_of(1.0, -1.0, steps=2), torch.tensor([[0.5, 1.0], [-0.5, -1.5]])
    credit = TDPO(**TDPO_ARGS).credit(rewards, torch.ones(2), values)
    # G - V: [[.5, 0], [-.5, .5]]; z-scored per timestep: [[1, -1], [-1, 1]]
    torch.testing.assert_close(credit.advantages, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), atol=1e-5, rtol=0)
    assert credit.returns.tolist() == [[1.0, 1.0], [-1.0, -1.0]]


def test_tdpo_official_normalisation_is_over_everything():
    rewards, values = returns_of(1.0, -1.0, steps=2), torch.tensor([[0.5, 1.0], [-0.5, -1.5]])
    credit = TDPO(**TDPO_ARGS, normalise_over="all").credit(rewards, torch.ones(2), values)
    # mean .125, population sd sqrt(.171875)
    expected = (torch.tensor([[0.5, 0.0], [-0.5, 0.5]]) - 0.125) / math.sqrt(0.171875)
    torch.testing.assert_close(credit.advantages, expected, atol=1e-5, rtol=0)


def test_a_constant_is_standardised_to_zero():
    assert standardise(torch.ones(4, 3), (0,)).eq(0).all()


def test_variance_weighting_by_hand():
    made = DDPO(clip_range=1e-4, advantage_clip=5.0, timestep_weighting="variance")
    credit = made.credit(returns_of(2.0, steps=2), torch.tensor([3.0, 1.0]), None)  # sigma^2 9 and 1, mean 5
    torch.testing.assert_close(credit.advantages, torch.tensor([[2 * 9 / 5, 2 / 5]]))
    assert made.weights(torch.rand(7)).mean().item() == pytest.approx(1)


@pytest.mark.parametrize(("fraction", "steps"), [(1.0, 10), (0.5, 5), (0.34, 3), (0.01, 1)])
def test_trained_steps(fraction, steps):
    assert DDPO(1e-4, 5.0, timestep_fraction=fraction).trained_steps(10) == steps


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_wrong_fractions_are_told(fraction):
    with pytest.raises(UserError, match=f"timestep_fraction={fraction}"):
        DDPO(1e-4, 5.0, timestep_fraction=fraction)


def test_dpoks_steps_see_one_state_of_every_sample_each():
    algorithm = DPOK(1e-4, policy_steps=3, schedule="timestep", shuffle_timesteps=True)
    updates = list(algorithm.updates(8, 5, 1))
    assert [sorted(samples.tolist()) for samples, _ in updates] == [list(range(8))] * 3
    rows = {row for samples, slots in updates for row in zip(samples.tolist(), slots.tolist(), strict=True)}
    assert len(rows) == 24 == algorithm.rows_trained(8, 5)
    assert all(len(slots.unique()) > 1 for _, slots in updates)
    again = algorithm.updates(8, 5, 2)
    assert not all(slots.equal(others) for (_, slots), (_, others) in zip(updates, again, strict=True))


def test_dpok_takes_no_more_steps_than_its_schedule_gives():
    algorithm = DPOK(1e-4, policy_steps=9, schedule="timestep", inner_epochs=2, samples_per_update=4)
    assert len(list(algorithm.updates(8, 2, 1))) == 8 and algorithm.rows_trained(8, 2) == 32
    with pytest.raises(UserError, match=r"algorithm.policy_steps=0 must be at least 1"):
        DPOK(1e-4, policy_steps=0)


def test_what_a_regulariser_takes_off_is_neither_clipped_nor_weighed():
    """A = 2 clipped to 1, times sigma^2 = 9 and 1 over their mean of 5, less 1 and 4; of pairs, off the returns."""
    returns, std, penalty = returns_of(2.0, steps=2), torch.tensor([3.0, 1.0]), torch.tensor([[1.0, 4.0]])
    made = DDPO(clip_range=1e-4, advantage_clip=1.0, timestep_weighting="variance")
    assert made.credit_less(None, returns, std, None).advantages.tolist() == [pytest.approx([1.8, 0.2])]
    assert made.credit_less(penalty, returns, std, None).advantages.tolist() == [pytest.approx([0.8, -3.8])]
    assert NFT().credit_less(penalty, returns, std, None).advantages.tolist() == [[1.0, 1.0]]


def test_rows_trained_are_those_of_the_updates():
    algorithm = DDPO(clip_range=1e-4, advantage_clip=5.0, inner_epochs=2, samples_per_update=4)
    assert algorithm.rows_trained(8, 3) == sum(len(samples) for samples, _ in algorithm.updates(8, 3, 1)) == 48


def test_a_prompt_that_comes_again_makes_pairs_of_its_own():
    prompts = ["cat", "cat", "dog", "dog", "cat", "cat"]
    for group, firsts, partners in ((2, [0, 0, 2, 2, 4, 4], [-1, 0, -1, 2, 5, -1]), (None, [0, 0, 2, 2, 0, 0], None)):
        algorithm = D3PO()
        algorithm.group_size = group
        assert algorithm.firsts(prompts) == firsts
        worth = torch.tensor([1.0, 2.0, 1.0, 3.0, 5.0, 4.0])
        algorithm.normalise(worth, prompts, PromptNormaliser())
        found = algorithm.credit(returns_of(*worth.tolist(), steps=2), torch.ones(2), None).partners.tolist()
        assert found == (partners or [-1, -1, -1, 2, 0, -1])
