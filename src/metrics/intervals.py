"""Means with bootstrap intervals, prompts being the units that are drawn; and the area under a curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% percentile-bootstrap interval."""

    mean: float
    low: float
    high: float


def freedom_within(units: Sequence[str]) -> int:
    """Degrees of freedom of the spread about the mean of each unit; 0 where no unit has two values."""
    return len(units) - len(set(units))


def spread_within(values: np.ndarray, units: Sequence[str]) -> float:
    """Standard deviation of values about the mean of their unit, pooled over units.

    About the common mean where no unit has two values.
    """
    groups = [values[np.array(units) == unit] for unit in dict.fromkeys(units)]
    freedom = freedom_within(units)
    if freedom == 0:
        return float(values.std())
    return float((sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom) ** 0.5)


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, to three digits (Cornish-Fisher expansion; exact for 1 and 2)."""
    exact = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}
    if freedom in exact:
        return exact[freedom]
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / freedom**k for k, term in enumerate(terms)))


def area_under(points: Sequence[tuple[float, float]]) -> float:
    """Trapezoidal area under (x, y), taken in the order of x."""
    x, y = np.array(sorted(points), float).T
    return float(np.trapezoid(y, x))


def bootstrap_mean(values: np.ndarray, units: Sequence[str], draws: int = 2000, seed: int = 0) -> Interval:
    """Mean over units of the units' means, and its interval under resampling of units.

    Samples of one prompt are not independent, so prompts are resampled, not samples.
    """
    means = np.array([values[np.array(units) == unit].mean() for unit in dict.fromkeys(units)])
    rng = np.random.default_rng(seed)
    resampled = means[rng.integers(len(means), size=(draws, len(means)))].mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(means.mean()), float(low), float(high))
