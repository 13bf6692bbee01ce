"""Metrics of pictures, features and trajectories, against values worked out by hand."""

import importlib.util
import math

import pytest
import torch

from src.errors import UserError
from src.metrics.diversity import DriftFromBase, WithinPromptDiversity, lpips, lpips_within, vendi_score
from src.metrics.kl import TrajectoryKL
from src.metrics.pictures import STATISTICS, PictureStatistics, bright_share, colour_entropy, edge_density, saturation


def flat(*colour: float) -> torch.Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def test_saturation_of_plain_colours():
    pictures = torch.cat([flat(1.0, 0.0, 0.0), flat(0.5, 0.5, 0.5), flat(0.8, 0.4, 0.6), flat(0.0, 0.0, 0.0)])
    torch.testing.assert_close(saturation(pictures), torch.tensor([1.0, 0.0, 0.5, 0.0]))


def test_shares_edges_and_entropy_of_a_half_black_picture():
    picture = flat(1.0, 1.0, 1.0).clone()
    picture[..., :4] = 0  # one edge of height 1 between 8 columns: 1 of 7 differences, in each of 8 rows
    assert bright_share(picture).item() == 0.5
    assert STATISTICS["dark_share"](picture).item() == 0.5
    assert edge_density(picture).item() == pytest.approx(1 / 7)
    assert colour_entropy(picture).item() == pytest.approx(1.0)  # two colours, equally often
    assert colour_entropy(flat(0.2, 0.3, 0.4)).item() == pytest.approx(0.0)


def test_noise_makes_a_larger_jpeg_than_a_plain_ground():
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sizes = STATISTICS["jpeg_bytes"](torch.cat([noise, torch.full_like(noise, 0.5)]))
    assert sizes[0] > 4 * sizes[1] > 0


def test_statistics_are_means_over_all_pictures_of_all_updates():
    metric = PictureStatistics()
    metric.update(flat(1.0, 0.0, 0.0))
    metric.update(torch.cat([flat(1.0, 1.0, 1.0)] * 3))
    values = metric.compute()
    assert values["saturation"] == pytest.approx(0.25)
    assert values["bright_share"] == pytest.approx(0.75)
    assert set(values) == set(STATISTICS)


def test_vendi_score_counts_different_pictures():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert vendi_score(torch.stack([one, one, one])).item() == pytest.approx(1)
    assert vendi_score(torch.stack([one, other])).item() == pytest.approx(2)
    # two alike and one orthogonal: eigenvalues 2/3 and 1/3
    expected = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert vendi_score(torch.stack([one, one, other])).item() == pytest.approx(expected)


def test_diversity_is_averaged_over_prompts_with_two_pictures():
    metric = WithinPromptDiversity()
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    metric.update(torch.stack([one, one, one]), torch.tensor([0, 1, 2]))
    metric.update(torch.stack([one, other]), torch.tensor([0, 1]))  # prompt 0: alike; 1: orthogonal; 2: alone
    assert metric.compute() == pytest.approx({"distance": 0.5, "vendi": 1.5})


def test_drift_is_zero_at_the_base_and_one_when_orthogonal():
    metric, features = DriftFromBase(), torch.eye(2)
    metric.update(features, features)
    assert metric.compute() == 0
    metric.update(features, features.flip(0))
    assert metric.compute() == pytest.approx(0.5)


def test_trajectory_kl_sums_steps_and_averages_samples():
    metric = TrajectoryKL(num_steps=2)
    metric.update(torch.tensor([[1.0, 2.0]]))
    metric.update(torch.tensor([[3.0, 2.0], [2.0, 2.0]]))
    assert metric.compute() == {"trajectory": 4.0, "sqrt": 2.0, "step_0": 2.0, "step_1": 2.0}


def test_lpips_is_averaged_over_the_pairs_of_each_prompt_then_over_prompts():
    images = torch.tensor([0.0, 0.2, 0.6, 0.5, 0.4])[:, None, None, None].expand(-1, 3, 4, 4)
    difference = lambda a, b: (a - b).abs().mean((1, 2, 3))  # noqa: E731
    # cat: 0.2, 0.6, 0.4; dog: 0.1; the single owl has no pair
    prompts = ["cat", "cat", "cat", "dog", "dog"]
    assert lpips_within(images, prompts, difference) == pytest.approx((0.4 + 0.1) / 2)
    assert lpips_within(images[:1], ["owl"], difference) == 0


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here")
def test_lpips_without_torchvision_is_told():
    with pytest.raises(UserError, match="lpips_network needs torchvision"):
        lpips("alex")
