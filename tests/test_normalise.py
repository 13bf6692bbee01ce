import pytest
import torch

from src.normalise import PromptNormaliser


def test_batch_moments_until_enough_are_seen():
    normalise = PromptNormaliser(buffer=4, min_count=3)
    out = normalise(torch.tensor([1.0, 3.0, 5.0, 7.0]), ["a", "a", "b", "b"])  # mean 4, sd sqrt(5)
    torch.testing.assert_close(out, (torch.tensor([1.0, 3.0, 5.0, 7.0]) - 4) / 5**0.5, atol=1e-5, rtol=0)


def test_own_moments_afterwards_over_the_last_values():
    normalise = PromptNormaliser(buffer=3, min_count=3)
    normalise(torch.tensor([100.0, 2.0]), ["a", "a"])
    out = normalise(torch.tensor([4.0, 6.0, 0.0]), ["a", "a", "b"])
    # a holds 2, 4, 6: mean 4, sd sqrt(8/3); b has one value, so the batch 4, 6, 0: mean 10/3, sd sqrt(56/9)
    assert out.tolist() == pytest.approx([0, 2 / (8 / 3) ** 0.5, -(10 / 3) / (56 / 9) ** 0.5], abs=1e-4)


def test_state_round_trip():
    first, second = PromptNormaliser(4, 2), PromptNormaliser(4, 2)
    first(torch.tensor([1.0, 2.0, 3.0]), ["a", "a", "b"])
    second.load_state_dict(first.state_dict())
    rewards = torch.tensor([5.0, 6.0])
    assert first(rewards, ["a", "b"]).tolist() == second(rewards, ["a", "b"]).tolist()
