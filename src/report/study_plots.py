"""Figures of a study, as PNG files to be committed beside its table. Needs the extra `studies` (matplotlib)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from src.report.figures import COLOURS
from src.report.runs import Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def proxy_and_gold(trained: str) -> dict[str, tuple[str, str]]:
    """Panels of a study on this reward: title, and keys of x and y."""
    return {
        f"trained reward ({trained}), gain [base sd]": ("reward_queries", f"eval/{trained}/gain"),
        "gold, gain [base sd]": ("reward_queries", "eval/gold/gain"),
        "gold over trained reward [base sd]": (f"eval/{trained}/gain", "eval/gold/gain"),
        "gold over sqrt(KL) [base sd, nats^½]": ("kl/sqrt", "eval/gold/gain"),
    }


def draw_curves(
    arms: dict[str, Sequence[Run]], panels: dict[str, tuple[str, str]], target: Path, columns: int = 2
) -> None:
    """A panel for each title of `panels`, whose value is (x key, y key) of the evaluations.

    A thin line for each run; a thick one for the mean of an arm, where its runs share their x.
    """
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axis, (title, (x, y)) in zip(axes.flat, panels.items(), strict=False):
        for k, (arm, runs) in enumerate(arms.items()):
            colour = COLOURS[k % len(COLOURS)]
            curves = [(run.series(x), run.series(y)) for run in runs]
            shared = len({tuple(xs) for xs, _ in curves}) == 1
            for xs, ys in curves:
                axis.plot(xs, ys, color=colour, linewidth=0.7 if shared else 1.2, alpha=0.5 if shared else 0.9)
            if shared:
                axis.plot(curves[0][0], np.mean([ys for _, ys in curves], axis=0), color=colour, linewidth=2)
            axis.plot([], [], color=colour, linewidth=2, label=arm)
        axis.axhline(0, color="#999999", linewidth=0.6)
        axis.set(title=title)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    axes.flat[0].legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=110)
    plt.close(figure)


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
    """A panel for each title, of rows of one outcome as `compare` makes them: differences with their intervals, a line
    an arm. All panels need the same arms.
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
