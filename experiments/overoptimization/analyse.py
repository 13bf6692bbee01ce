"""Does overoptimization happen in the miniature world, and is it seen?

`python experiments/overoptimization/analyse.py` writes results.csv, curves.png and, of the first seed, pictures
before training, at gold's peak and at the end.
"""

import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from src.report.runs import Run, find_runs
from src.report.study import table
from src.report.study_plots import draw_curves

HERE = Path(__file__).parent
PANELS = {
    "trained reward, gain [base sd]": ("reward_queries", "eval/hps/gain"),
    "gold, gain [base sd]": ("reward_queries", "eval/gold/gain"),
    "gold on held-out prompts, gain [base sd]": ("reward_queries", "held_out/gold/gain"),
    "independent classifier, top-1 accuracy": ("reward_queries", "eval/classifier_top1/mean"),
}


def at_peak(run: Run) -> int:
    gold = run.series("eval/gold/gain")
    return gold.index(max(gold))


def pictures(run: Run) -> None:
    """The run's grids, the base's first, made small enough to be committed."""
    chosen = {"start": 0, "peak": at_peak(run), "end": len(run.evaluations) - 1}
    for name, k in chosen.items():
        grid = Image.open(run.folder / "samples" / f"{run.evaluations[k]['iteration']:05d}.png").convert("RGB")
        grid.quantize(128).save(HERE / f"{name}.png", optimize=True)


def main() -> None:
    runs = find_runs(sys.argv[1:] or ["multirun/ddpo_hps_sweep"])
    found = table(runs, lambda config: config["name"])
    by_seed = {run.config["seed"]: run for run in runs}
    top1 = {seed: run.series("eval/classifier_top1/mean") for seed, run in by_seed.items()}
    found.insert(5, "top1_start", [top1[seed][0] for seed in found.seed])
    found.insert(6, "top1_highest", [max(top1[seed]) for seed in found.seed])
    found.to_csv(HERE / "results.csv", index=False, float_format="%.4g")
    draw_curves({"DDPO on hps": runs}, PANELS, HERE / "curves.png")
    pictures(by_seed[min(by_seed)])
    pd.set_option("display.width", 200, "display.max_columns", 30)
    print(found.round(3).T.to_string())


if __name__ == "__main__":
    main()
