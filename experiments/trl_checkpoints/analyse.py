"""The picture of docs/evaluate.md: `python experiments/trl_checkpoints/analyse.py FOLDER` draws docs/evaluate.png.

FOLDER holds `series` and `frontier`, as run.sh makes them.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from src.errors import told_in_one_sentence
from src.report.figures import COLOURS
from src.report.runs import Run, find_runs, headline

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = 4  # pictures of each evaluation


def rewards_over_checkpoints(axis: plt.Axes, run: Run) -> None:
    for k, name in enumerate(run.rewards):
        gains = run.series(f"eval/{name}/gain")
        if np.isnan(gains).all():
            continue
        label = f"{name} (trained)" if name == run.trained else name
        bold = name in (run.trained, "gold")
        axis.plot(run.places, gains, color=COLOURS[k], linewidth=2.4 if bold else 1.2, label=label)
        low, high = run.series(f"eval/{name}/gain_low"), run.series(f"eval/{name}/gain_high")
        axis.fill_between(run.places, low, high, color=COLOURS[k], alpha=0.12, linewidth=0)
    axis.axhline(0, color="#999999", linewidth=0.6)
    axis.set(xlabel="checkpoint", ylabel="gain over the base [base sd]", title="train less")
    axis.legend(frameon=False, fontsize=8)


def gold_over_reward(axis: plt.Axes, runs: dict[str, Run]) -> None:
    for k, (label, run) in enumerate(runs.items()):
        x, y = run.series(f"eval/{run.trained}/gain"), run.series("eval/gold/gain")
        axis.plot(x, y, "o-", color=COLOURS[k], markersize=4, label=label)
    axis.axhline(0, color="#999999", linewidth=0.6)
    trained = next(iter(runs.values())).trained
    axis.set(xlabel=f"gain of {trained} [base sd]", ylabel="gain of gold [base sd]", title="or use less of it")
    axis.legend(frameon=False, fontsize=8)


def pictures(run: Run, k: int) -> np.ndarray:
    """The first pictures of an evaluation's grid, without their labels."""
    grid = np.asarray(Image.open(run.folder / "samples" / f"{k:05d}.png").convert("RGB"))
    size = grid.shape[1] // 8
    return grid[:size, : SHOWN * size]


def main(folder: Path) -> None:
    series, frontier = (find_runs([str(folder / name)])[0] for name in ("series", "frontier"))
    gold = series.series("eval/gold/gain")
    peak = int(np.argmax(gold))
    figure = plt.figure(figsize=(12, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.4, 1])
    left, right = top.subplots(1, 2)
    rewards_over_checkpoints(left, series)
    gold_over_reward(right, {"checkpoints": series, "the last one at less than its scale": frontier})
    shown = {"base": 0, f"gold's peak, {series.told(peak).removeprefix('at ')}": peak, "last": len(gold) - 1}
    for axis, (title, k) in zip(bottom.subplots(1, 3), shown.items(), strict=True):
        axis.imshow(pictures(series, k))
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.savefig(Path(__file__).parents[2] / "docs/evaluate.png", dpi=80)
    print(headline(series))


if __name__ == "__main__":
    with told_in_one_sentence():
        main(Path(sys.argv[1]))
