"""Gao et al.'s forms of gold reward over distance from the base (2022, arXiv 2210.10760), fitted by least squares.

With d = sqrt(KL): best-of-n R(d) = d (alpha - beta d), RL R(d) = d (alpha - beta log d), R(0) = 0. Both are linear in
(alpha, beta), so the fit is ordinary least squares without intercept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Form = Literal["rl", "best_of_n"]
Numbers = Sequence[float | int] | np.ndarray
PENALTY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rl": lambda d: d * np.log(d),
    "best_of_n": lambda d: d**2,
}


@dataclass(frozen=True)
class Fit:
    """A fitted curve. Intervals are 95% percentile-bootstrap intervals over points."""

    form: Form
    alpha: float
    beta: float
    alpha_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    r2: float  # share of the rewards' variance explained
    peak: float  # distance at which the curve is highest; infinite where it never falls

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        d = np.asarray(distance, dtype=float)
        safe = np.maximum(d, 1e-12)
        return np.where(d > 0, self.alpha * d - self.beta * PENALTY[self.form](safe), 0.0)


def peak_of(form: Form, alpha: float, beta: float) -> float:
    """alpha / (2 beta) for best-of-n, exp(alpha / beta - 1) for RL."""
    if beta <= 0:
        return math.inf
    if form == "best_of_n":
        return max(0.0, alpha / (2 * beta))
    return math.exp(min(alpha / beta - 1, 700))


def fit_reward(distance: Numbers, reward: Numbers, form: Form, draws: int = 1000, seed: int = 0) -> Fit:
    """Fits R(d). Raises ValueError on fewer than three points at a positive distance."""
    d, r = np.asarray(distance, float), np.asarray(reward, float)
    keep = d > 0
    d, r = d[keep], r[keep]
    if len(d) < 3:
        raise ValueError(f"a fit needs three points or more away from the base, not {len(d)}")
    design = np.stack([d, -PENALTY[form](d)], 1)
    alpha, beta = _least_squares(design, r)
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(d), size=(draws, len(d)))
    estimates = np.array([_least_squares(design[k], r[k]) for k in rows if len(set(k)) > 1])
    (a_low, b_low), (a_high, b_high) = np.quantile(estimates, [0.025, 0.975], axis=0)
    residual = r - design @ np.array([alpha, beta])
    spread = ((r - r.mean()) ** 2).sum()
    return Fit(
        form,
        alpha,
        beta,
        (float(a_low), float(a_high)),
        (float(b_low), float(b_high)),
        float(1 - (residual**2).sum() / spread) if spread > 0 else 0.0,
        peak_of(form, alpha, beta),
    )


def _least_squares(design: np.ndarray, r: np.ndarray) -> tuple[float, float]:
    alpha, beta = np.linalg.lstsq(design, r, rcond=None)[0]
    return float(alpha), float(beta)
