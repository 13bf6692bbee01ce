"""What became of one run, in figures: the columns of results.csv. Gains are in base sd, and gold's unless named."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.leaderboard.entries import PICTURES
from src.metrics.intervals import area_under
from src.metrics.watching import signal_of
from src.report.runs import Run
from src.report.study import crossing, outcomes
from src.report.watching import from_the_base, shipment

LEVELS = (1.0, 1.5, 2.0)  # gains of the trained reward that gold is read at
DISTANCES = (10.0, 20.0, 40.0)  # sqrt(KL), nats^(1/2), likewise
FAMILIES = ("hps", "pickscore", "imagereward", "aesthetic")  # the rewards that all runs know
MARGIN = 0.5  # that the other rewards may fall behind, base sd, as the watch's
WIDEST = 1.0  # of two evaluations that a reading lies between, base sd of the trained reward
WIDEST_STEP = 20.0  # the same in sqrt(KL)
NAN = float("nan")
Figures = dict[str, Any]


def as_entered(run: Run) -> Run:
    """A run as the board looks at it.

    Where an ensemble or a sum is trained on, the trained reward is its first member, which the others are to guard; and
    where a regulariser averages the weights, gains are those of the average, which is what one would ship.
    """
    rewards = run.config["suite"]["rewards"]
    members = rewards[run.trained].get("members")
    trained = next(name for name in rewards if rewards[name] == members[0]) if members else run.trained
    rows = [_averaged(row) for row in run.evaluations] if run.has_average else run.evaluations
    return replace(run, config=run.config | {"train_reward": trained}, evaluations=rows)


def _averaged(row: Figures) -> Figures:
    """The row with what was measured of averaged weights in place of the raw ones'."""
    found = {key.replace("_ema/", "/", 1): value for key, value in row.items() if "_ema/" in key}
    return {key: value for key, value in row.items() if "_ema/" not in key} | found


def figures(run: Run, levels: Sequence[float] = LEVELS) -> Figures:
    """Every figure of merit of a run, and what it cost; nan where it has none, such as where it never got there."""
    seen = as_entered(run)
    proxy, gold, kl = (seen.series(key) for key in (f"eval/{seen.trained}/gain", "eval/gold/gain", "kl/sqrt"))
    ends, last = outcomes(seen), seen.iterations[-1] if seen.iterations else {}
    found = _shipped(run, seen) | {"gold_at_alarm": gold_at_alarm(seen)}
    found |= {f"gold_at_{level:g}": read(proxy, gold, level) for level in levels}
    found |= {f"gold_at_sqrt_kl_{level:g}": read(kl, gold, level, WIDEST_STEP) for level in DISTANCES}
    found |= {key: ends[key] for key in ("gold_peak", "gold_end", "held_out_gold_end")}
    found |= {f"vendi_at_{level:g}": read(proxy, seen.series("pictures/vendi"), level) for level in levels}
    found |= {f"sqrt_kl_at_{level:g}": read(proxy, kl, level) for level in levels}
    found |= {f"area_to_{level:g}": area_over_best_of_n(seen, level) for level in levels}
    found |= {key: ends[key] for key in ("proxy_end", "kl_end", "overoptimization")}
    found |= {f"gap_at_{level:g}": gap(proxy, level) for level in levels}
    counted = {"proxy": proxy, "gold": gold} if seen.layout == "queries" else {"proxy": [], "gold": []}
    budget = PICTURES.get(seen.trained, NAN)  # reward queries of a method that asks one reward for a picture
    found |= {f"{name}_at_budget": crossing(seen.queries[: len(y)], y, budget) for name, y in counted.items()}
    found |= {key: seen.evaluations[-1].get(key, NAN) for key in ("reward_queries", "reward_gradients")}
    found |= {key: last.get(key, NAN) for key in ("iteration", "optimizer_steps", "seconds")}
    return found | {"stopped": int(run.had_to_stop)}


def _shipped(run: Run, seen: Run) -> Figures:
    """Of the weights, or the setting, that the watch would ship; `shipped` is their evaluation, 0 the base."""
    keys = {
        "gold_shipped": "eval/gold/gain",
        "held_out_gold_shipped": "held_out/gold/gain",
        "proxy_shipped": f"eval/{seen.trained}/gain",
        "vendi_shipped": "pictures/vendi",
    }
    told = shipment(run)
    if told is None:
        return dict.fromkeys((*keys, "shipped", "alarm"), NAN)
    row = seen.evaluations[told.index]
    found = {name: row.get(key, NAN) for name, key in keys.items()}
    return found | {"shipped": told.index, "alarm": int(told.alarm)}


def gold_at_alarm(run: Run) -> float:
    """Gold where the agreement of FAMILIES first lies MARGIN below its peak, read between evaluations; or at its end.

    One rule for all: the watch ships a whole evaluation, and follows fewer rewards where an ensemble is trained.
    """
    rows = [run.evaluations[k] for k in from_the_base(run)]
    others = [name for name in FAMILIES if name != run.trained and f"eval/{name}/gain" in rows[0]]
    signals = [signal_of(row, run.trained, others, "agreement") for row in rows]
    gold = [row["eval/gold/gain"] for row in rows]
    peak = -math.inf
    for k, signal in enumerate(signals):
        if signal is None:
            return NAN
        if signal < peak - MARGIN:
            before = signals[k - 1]
            share = (before - (peak - MARGIN)) / (before - signal)
            return float(gold[k - 1] + share * (gold[k] - gold[k - 1]))
        peak = max(peak, signal)
    return float(gold[-1])


def gap(x: Sequence[float], level: float) -> float:
    """How far apart the two evaluations are that `level` is first reached between; nan where it never is."""
    k = next((k for k, value in enumerate(x) if value >= level), None)
    return NAN if k is None else float(x[k] - x[k - 1]) if k else 0.0


def read(x: Sequence[float], y: Sequence[float], level: float, widest: float = WIDEST) -> float:
    """y where x first reaches `level`; nan where it never does, or in a leap that is wider than `widest`.

    Between evaluations the curve is taken for a straight line. Of one that bends as gold's over the trained reward does
    where DDPO is pressed (second derivative -1.1 a base sd), that is off by 1.1 / 8 times the square of the leap.
    """
    return crossing(x, y, level) if gap(x, level) <= widest else NAN


def area_over_best_of_n(run: Run, to: float) -> float:
    """Area between gold over the trained reward, from 0 to `to`, and the same of best of n, base sd^2; above it is > 0.

    Both curves are straight between their points. nan where a run never gets there, or leaps, and where best of n is
    not known of its base, prompts and reward.
    """
    control = run.control
    proxy, gold = run.series(f"eval/{run.trained}/gain"), run.series("eval/gold/gain")
    if control is None or read(proxy, gold, to) != read(proxy, gold, to) or max(control["proxy"]) < to:
        return NAN
    corners = {0.0, to, *(x for x in (*proxy, *control["proxy"]) if 0 < x < to)}
    pairs = ((x, crossing(proxy, gold, x), crossing(control["proxy"], control["judge"], x)) for x in sorted(corners))
    return area_under([(x, own - other) for x, own, other in pairs])
