import math

import numpy as np
import pytest

from src.metrics.fits import fit_reward, peak_of


@pytest.mark.parametrize("form", ["rl", "best_of_n"])
def test_recovers_the_curve_it_was_drawn_from(form):
    d = np.linspace(0, 4, 30)
    penalty = np.where(d > 0, d * np.log(np.maximum(d, 1e-9)), 0) if form == "rl" else d**2
    truth = 1.5 * d - 0.4 * penalty
    fit = fit_reward(d, truth, form)
    assert (fit.alpha, fit.beta) == pytest.approx((1.5, 0.4))
    assert fit.r2 == pytest.approx(1)
    np.testing.assert_allclose(fit(d), truth, atol=1e-9)
    noisy = fit_reward(d, truth + np.random.default_rng(0).normal(0, 0.1, 30), form)
    assert noisy.alpha_interval[0] < 1.5 < noisy.alpha_interval[1]
    assert noisy.beta_interval[0] < 0.4 < noisy.beta_interval[1]
    assert 0.5 < noisy.r2 < 1


def test_peaks_are_gao_et_als():
    assert peak_of("best_of_n", 2.0, 0.5) == 2.0
    assert peak_of("rl", 2.0, 0.5) == pytest.approx(math.exp(3))
    assert peak_of("rl", 1.0, -0.1) == math.inf
    fit = fit_reward([0.5, 1, 2, 3, 4, 5], [0.9, 1.5, 2.0, 1.5, 0.0, -2.5], "best_of_n")  # 2 d - 0.5 d^2, nearly
    grid = np.linspace(0, 5, 5001)
    assert grid[fit(grid).argmax()] == pytest.approx(fit.peak, abs=2e-3)


def test_too_few_points_are_told():
    with pytest.raises(ValueError, match="three points or more"):
        fit_reward([0, 1, 2], [0, 1, 1], "rl")
