"""Does a flow model overoptimize? `python experiments/mini_flow/analyse.py [FOLDER]` writes tables and pictures.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/mini_flow. Grids are of the first seed of
DDPO, pressed on, where its run was made here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from src.errors import told_in_one_sentence
from src.report.figures import JUDGE
from src.report.runs import Run
from src.report.study import by_arm, means, outcomes, single, study_runs, table, write_tables
from src.report.study_plots import draw_curves, proxy_and_gold
from src.report.watching import shipment

HERE = Path(__file__).parent
VARIED = ("name", "algorithm.", "critic", "reset.", "optimizer.", "iterations", "lr_factor", "lr_ramp", "budget")
REACHED = ["proxy_end", "kl_end", "vendi_end"]
GOLD = [
    "gold_peak",
    "gold_peak_queries",
    "gold_end",
    "gold_shipped",
    "alarm",
    "held_out_gold_end",
    "gold_at_0.5",
    "gold_at_1",
    "top1_end",
]
LEVELS = (0.5, 1.0)
WANTED = 1.0  # base sd that the trained reward is to gain
PRESSED = "ddpo, pressed on"


def arm(config: dict[str, Any]) -> str:
    name = config["name"].removesuffix("_hps")
    return f"{name}, pressed on" if config["lr_factor"] > 1 else name


def row_of(run: Run, levels: Sequence[float]) -> dict[str, Any]:
    """With what the run's own watch, blind to gold, says of it."""
    found = outcomes(run, levels)
    if (sent := shipment(run)) is not None:
        found |= {"alarm": int(sent.alarm), "gold_shipped": run.series(f"eval/{JUDGE}/gain")[sent.index]}
    return found


def pictures(run: Run) -> None:
    """The run's grids, the base's first, made small enough to be committed."""
    last = len(run.evaluations) - 1
    for name, k in {"start": 0, "middle": last // 2, "end": last}.items():
        made = run.folder / "samples" / f"{run.evaluations[k]['iteration']:05d}.png"
        if made.exists():
            Image.open(made).convert("RGB").quantize(128).save(HERE / f"{name}.png", optimize=True)


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:])
    found = table(runs, arm, LEVELS, row_of, VARIED).dropna(axis=1, how="all")
    tables = {
        "Means over seeds: what was trained on": means(found, REACHED),
        "Means over seeds: gold": means(found, GOLD),
        "Against a gain of 1 base sd": single(found, ["proxy_end"], above=WANTED),
    }
    write_tables(HERE, found, tables)
    arms = by_arm(runs, arm)
    draw_curves(arms, proxy_and_gold("hps"), HERE / "curves.png")
    if PRESSED in arms:
        pictures(min(arms[PRESSED], key=lambda run: run.config["seed"]))


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
