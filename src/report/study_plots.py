"""Figures of a study, as PNG files to be committed beside its table. Needs the extra `studies` (matplotlib)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from src.report.figures import COLOURS
from src.report.runs import AXES, CHOICES, Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LOWEST = -2.0  # gold that panels of families go down to, base sd
PER_PICTURE = ("reward_queries", "reward_gradients", "iteration")  # what controls count otherwise than training does


def proxy_and_gold(trained: str, x: str = "reward_queries") -> dict[str, tuple[str, str]]:
    """Panels of a study on this reward: title, and keys of x and y. `x` is a key of CHOICES."""
    key, over = CHOICES[x].key, "" if x == "reward_queries" else f" over {CHOICES[x].title.split(' [')[0]}"
    return {
        f"trained reward ({trained}), gain [base sd]{over}": (key, f"eval/{trained}/gain"),
        f"gold, gain [base sd]{over}": (key, "eval/gold/gain"),
        "gold over trained reward [base sd]": (f"eval/{trained}/gain", "eval/gold/gain"),
        "gold over sqrt(KL) [base sd, nats^½]": ("kl/sqrt", "eval/gold/gain"),
    }


def costs_of_controls(trained: str) -> dict[str, tuple[str, str]]:
    """Panels of controls without training, over what one picture costs them."""
    names = {f"controls: {trained}": trained, "controls: gold": "gold"}
    return {
        f"{title} over reward queries a picture": ("reward_queries", f"eval/{name}/gain")
        for title, name in names.items()
    }


def draw_curves(
    arms: Mapping[str, Sequence[Run]],
    panels: dict[str, tuple[str, str]],
    target: Path,
    columns: int = 2,
    controls: Mapping[str, Sequence[Run]] | None = None,
) -> None:
    """A panel for each title of `panels`, whose value is (x key, y key) of the evaluations.

    A thin line for each run; a thick one for the mean of an arm, where its runs share their x. Controls without
    training are dotted: in the panels whose x they share with training, and in two of their own.
    """
    controls = controls or {}
    own = costs_of_controls(str(next(iter(controls.values()))[0].trained)) if controls else {}
    rows = -(-(len(panels) + len(own)) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axis, (title, (x, y)) in zip(axes.flat, (panels | own).items(), strict=False):
        if title in own:
            axis.set_xscale("symlog", base=2, linthresh=1)  # the base costs nothing
        else:
            _draw_arms(axis, arms, x, y)
        if title in own or x not in PER_PICTURE:
            _draw_controls(axis, controls, x, y, len(arms))
        axis.axhline(0, color="#999999", linewidth=0.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(AXES["per_picture"].title if title in own else label_of(x), fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) + len(own) :]:
        axis.set_visible(False)
    axes.flat[0].legend(frameon=False, fontsize=8)
    if own:
        axes.flat[len(panels)].legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def label_of(key: str) -> str:
    """What an axis over this key of the evaluations is called."""
    if key.endswith("/gain"):
        return f"{key.split('/')[-2]}, gain [base sd]"
    return next((axis.title for axis in CHOICES.values() if axis.key == key), key)


def _draw_arms(axis: Any, arms: Mapping[str, Sequence[Run]], x: str, y: str) -> None:
    for k, (arm, runs) in enumerate(arms.items()):
        colour = COLOURS[k % len(COLOURS)]
        curves = [(run.series(x), run.series(y)) for run in runs]
        shared = len({tuple(xs) for xs, _ in curves}) == 1
        for xs, ys in curves:
            axis.plot(xs, ys, color=colour, linewidth=0.7 if shared else 1.2, alpha=0.5 if shared else 0.9)
        if shared:
            axis.plot(curves[0][0], np.mean([ys for _, ys in curves], axis=0), color=colour, linewidth=2)
        axis.plot([], [], color=colour, linewidth=2, label=arm)


def _draw_controls(axis: Any, controls: Mapping[str, Sequence[Run]], x: str, y: str, first: int) -> None:
    """In the colours after the first ones, which are the arms'."""
    for k, (name, runs) in enumerate(controls.items(), first):
        dotted = {"color": COLOURS[k % len(COLOURS)], "linestyle": ":", "marker": ".", "linewidth": 1.2}
        for run in runs:
            axis.plot(run.series(x), run.series(y), **dotted)
        axis.plot([], [], label=name, **dotted)


def draw_shares(arms: dict[str, Sequence[Run]], key: str, label: str, target: Path) -> None:
    """A metric of the iterations: a thin line for each run, a thick one for the mean of an arm."""
    figure, axis = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for k, (arm, runs) in enumerate(arms.items()):
        curves = np.array([run.series(key, run.iterations) for run in runs])
        iterations = [row["iteration"] for row in runs[0].iterations]
        colour = COLOURS[k % len(COLOURS)]
        axis.plot(iterations, curves.T, color=colour, linewidth=0.7, alpha=0.5)
        axis.plot(iterations, curves.mean(0), color=colour, linewidth=2, label=arm)
    axis.set(xlabel="iteration", ylabel=label, ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def draw_differences(panels: dict[str, pd.DataFrame], target: Path) -> None:
    """A panel for each title, of rows of one outcome as `compare` makes them: differences with their intervals.

    An arm has a line. All panels need the same arms.
    """
    arms = next(iter(panels.values())).arm
    size = (1.2 + 3.9 * len(panels), 1.1 + 0.3 * len(arms))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        halves = (rows.high - rows.low) / 2
        axis.errorbar(rows.difference, rows.arm, xerr=halves, fmt="o", color=COLOURS[0], ecolor="#7A7A7A", capsize=3)
        axis.axvline(0, color="#999999", linewidth=0.6)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].invert_yaxis()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def draw_families(families: dict[str, dict[str, Sequence[Run]]], target: Path, columns: int = 4) -> None:
    """Gold over the trained reward: for each reward that runs train on, a panel for each family of methods.

    A line is a method's mean over its seeds, evaluation by evaluation, of those of its runs that have as many as any;
    grey are the methods of other families, and dotted is best of n, where the suite knows it.
    """
    everything = [run for methods in families.values() for runs in methods.values() for run in runs]
    rewards = list(dict.fromkeys(run.trained for run in everything))
    columns = min(columns, len(families))
    rows = -(-len(families) // columns)
    size = (3.4 * columns, 2.9 * rows * len(rewards))
    figure, axes = plt.subplots(rows * len(rewards), columns, figsize=size, squeeze=False, layout="constrained")
    for k, reward in enumerate(rewards):
        panels = list(axes[k * rows : (k + 1) * rows].flat)
        lines = {
            family: {name: _mean_curve([r for r in runs if r.trained == reward]) for name, runs in methods.items()}
            for family, methods in families.items()
        }
        control = next((run.control for run in everything if run.trained == reward and run.control), None)
        for axis, family in zip(panels, families, strict=False):
            _draw_family(axis, lines, family, control)
            axis.set_title(f"{family}, on {reward}", fontsize=10)
            axis.set(xlabel=f"{reward}, gain [base sd]", ylabel="gold, gain [base sd]")
        for axis in panels[len(families) :]:
            axis.set_visible(False)
    figure.savefig(target, dpi=100)
    plt.close(figure)


def _mean_curve(runs: Sequence[Run]) -> np.ndarray | None:
    """Trained reward and gold, a row an evaluation; None of no runs."""
    curves = [np.array([run.series(f"eval/{name}/gain") for name in (run.trained, "gold")]).T for run in runs]
    longest = max(map(len, curves), default=0)
    whole = [curve for curve in curves if len(curve) == longest]
    return np.mean(whole, axis=0) if whole else None


def _draw_family(axis: Any, lines: dict[str, dict[str, Any]], chosen: str, control: dict[str, Any] | None) -> None:
    for family, methods in lines.items():
        for curve in methods.values():
            if family != chosen and curve is not None:
                axis.plot(*curve.T, color="#DDDDDD", linewidth=0.8)
    if control:
        axis.plot(control["proxy"], control["judge"], color="#7A7A7A", linestyle=":", linewidth=1.5, label="best of n")
    drawn = [(name, curve) for name, curve in lines[chosen].items() if curve is not None]
    for k, (name, curve) in enumerate(drawn):
        axis.plot(*curve.T, color=COLOURS[k % len(COLOURS)], marker=".", markersize=3, linewidth=1.5, label=name)
    axis.axhline(0, color="#999999", linewidth=0.6)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], LOWEST))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7)
