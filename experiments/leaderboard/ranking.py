"""Who is ahead, which neighbours are told apart, how many seeds would tell them, and what became of predictions."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from scipy import stats

from src.report.study import compare, judged, means

RANKS = "gold_shipped"  # the column that ranks
SEEDS = 5  # of all methods
DIFFERENCE = 0.1  # base sd that is to be decided
LEVEL, LOOKS, POWER = 0.05, 2, 0.8  # of all contrasts of the plan together; at five seeds, and once more
MOST = 200  # seeds that are looked up to
TOP = 5
PAPERS = [("tdpo_r", "tdpo"), ("tdpo", "ddpo")]


def over_rewards(found: pd.DataFrame, rewards: Sequence[str]) -> pd.DataFrame:
    """The mean over these rewards of each method and seed, of those that have all of them."""
    each = found[found.train_reward.isin(rewards)].groupby(["arm", "seed"])
    whole = each.train_reward.nunique() == len(rewards)
    return each.mean(numeric_only=True)[whole].reset_index()


def in_order(results: pd.DataFrame, rewards: Sequence[str]) -> list[str]:
    """Methods of results.csv from the best to the worst, over all these rewards."""
    first = results[results.seed < SEEDS].rename(columns={"method": "arm"})
    return list(ranking(over_rewards(first, rewards)).arm)


def ranking(found: pd.DataFrame, column: str = RANKS) -> pd.DataFrame:
    """From the best to the worst: the mean, and whether each is told apart from the next one below.

    Equal means share a rank. Neighbours are compared seed by seed, corrected for their number; that they are
    neighbours is known from the same seeds, so that those told apart are, if anything, too many.
    """
    shown = means(found.dropna(subset=[column]), [column])
    shown = shown.sort_values(column, ascending=False, kind="stable").reset_index(drop=True)
    shown.insert(0, "rank", shown[column].rank(method="min", ascending=False).astype(int))
    steps = compare(found, [column], list(pairwise(shown.arm)))
    for name, shown_as in {
        "difference": "less the next",
        "low": "low",
        "high": "high",
        "p_adjusted": "p_adjusted",
    }.items():
        shown[shown_as] = [*(steps[name] if len(steps) else ()), np.nan]
    shown["told apart"] = [*(_told_apart(row) for _, row in steps.iterrows()), ""]
    return shown


def _told_apart(step: pd.Series) -> str:
    """Of two neighbours; empty where one pair cannot tell."""
    if np.isnan(step.p):
        return "tie" if step.difference == 0 else ""
    return "yes" if step.p_adjusted < LEVEL else "no"


def seeds_needed(sd: float, difference: float, level: float, power: float = POWER) -> int | None:
    """Seeds of which a two-sided paired t test at `level` finds a true `difference` with this power; None beyond MOST.

    Args:
        sd: standard deviation of the differences over seeds.
    """
    for n in range(2, MOST + 1):
        critical, shift = stats.t.ppf(1 - level / 2, n - 1), difference / sd * np.sqrt(n) if sd > 0 else np.inf
        if not np.isfinite(shift) or _beyond(critical, n - 1, shift) >= power:
            return n
    return None


def _beyond(critical: float, freedom: int, shift: float) -> float:
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def sequential_plan(found: pd.DataFrame, order: Sequence[str], column: str = RANKS) -> pd.DataFrame:
    """The contrasts of the plan: all pairs of the top five in `order`, and the paper's; what they show, and the seeds
    they need.

    Intervals are at LEVEL, divided by the looks and by the contrasts. `apart`: 0 lies outside; `within 0.1`: all of it
    is nearer to 0 than that; `open`: neither. `seeds`: how many would find a difference of 0.1.
    """
    pairs = {frozenset(pair): pair for pair in [*combinations(order[:TOP], 2), *PAPERS]}  # each once, whichever leads
    contrasts = [pair for pair in pairs.values() if set(pair) <= set(found.arm)]
    level, rows = LEVEL / LOOKS / max(1, len(contrasts)), []
    wide = found.pivot(index="seed", columns="arm", values=column)
    for arm, other in contrasts:
        apart = (wide[arm] - wide[other]).dropna()
        n, mean, sd = len(apart), apart.mean(), apart.std()
        half = stats.t.ppf(1 - level / 2, n - 1) * sd / np.sqrt(n) if n > 1 else np.nan
        row = {"arm": arm, "against": other, "pairs": n, "difference": mean, "low": mean - half, "high": mean + half}
        needed = seeds_needed(sd, DIFFERENCE, level) if n > 1 else ""
        rows.append(row | {"sd": sd, "decided": _decided(row), "seeds": f"> {MOST}" if needed is None else needed})
    return pd.DataFrame(rows)


def _decided(row: dict) -> str:
    if row["low"] > 0 or row["high"] < 0:
        return "apart"
    return f"within {DIFFERENCE}" if row["low"] > -DIFFERENCE and row["high"] < DIFFERENCE else "open"


def verdicts(found: dict[str, pd.DataFrame], predictions: Sequence[dict]) -> pd.DataFrame:
    """What became of predictions; `found` has a table for each reward, and one for `both`.

    A prediction says that `outcome` of `arm` less that of `against` is `above`, `below` or `within` (to either side of
    0) so many of its units. See `verdict`; p is corrected over all predictions.
    """
    rows = []
    for each in predictions:
        table, row = found.get(each["reward"]), {"pairs": 0, "run": False}
        pair = (each["arm"], each["against"])
        if table is not None and set(pair) <= set(table.arm):
            row |= compare(table, [each["outcome"]], [pair]).iloc[0].to_dict() | {"run": True}
        told = {"id": each["id"], "prediction": in_words(each)}
        rows.append(told | dict.fromkeys(("difference", "low", "high", "p"), np.nan) | row)
    shown = judged(pd.DataFrame(rows), None)
    shown["verdict"] = [verdict(row, each) for (_, row), each in zip(shown.iterrows(), predictions, strict=True)]
    return shown[["id", "prediction", "pairs", "difference", "low", "high", "p_adjusted", "verdict"]]


WAYS = {"above": "more than {:+g}", "below": "less than {:+g}", "within": "within {:g} of 0"}


def in_words(prediction: dict) -> str:
    """What is predicted of a difference."""
    way = next(way for way in WAYS if way in prediction)
    what = f"{prediction['reward']}: {prediction['outcome']}, {prediction['arm']} less {prediction['against']}"
    return f"{what}: {WAYS[way].format(prediction[way])}"


def verdict(row: pd.Series, prediction: dict) -> str:
    """holds: the 95% interval lies where it was said to; fails: elsewhere; not shown: in part, or not known.

    That a difference is above or below 0 has to survive the correction, too.
    """
    if not row.run:
        return "not run"
    way = next(way for way in WAYS if way in prediction)
    by, low, high = prediction[way], row.low, row.high
    if way == "within":
        return "holds" if -by < low and high < by else "fails" if low > by or high < -by else "not shown"
    if way == "below":
        by, low, high = -by, -high, -low
    sure = by != 0 or row.p_adjusted < LEVEL
    return "holds" if low > by and sure else "fails" if high < by else "not shown"
