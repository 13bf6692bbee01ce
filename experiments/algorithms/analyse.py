"""What do the defaults do? `python experiments/algorithms/analyse.py [FOLDER]` writes tables.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/algorithms.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import told_in_one_sentence
from src.report.figures import JUDGE
from src.report.runs import Run
from src.report.study import by_arm, means, single, study_runs, table, write_tables
from src.report.study_plots import draw_curves, proxy_and_gold

HERE = Path(__file__).parent
VARIED = ("algorithm.", "critic", "reset.", "optimizer.", "samples_per_prompt", "max_grad_norm")
WANTED = 1.0  # base sd that the trained reward is to gain
REACHED = ["proxy_end", "proxy_low", "held_out_proxy_end", "kl_end", "vendi_end"]
PRICE = ["reward_queries", "reward_gradients", "optimizer_steps", "core_minutes"]
GOLD = ["gold_end", "gold_peak", "held_out_gold_end"]


def arm(config: dict[str, Any]) -> str:
    name = config["algorithm._target_"].split(".")[-2]
    return f"{name}_r" if config["reset._target_"].endswith(".ActiveReset") else name


def row_of(run: Run, _levels: Any) -> dict[str, Any]:
    """What the trained reward gained by the last evaluation, `proxy_low` its interval's lower end; the price; gold."""
    last, gold = run.evaluations[-1], run.series(f"eval/{JUDGE}/gain")
    return {
        "proxy_end": last[f"eval/{run.trained}/gain"],
        "proxy_low": last[f"eval/{run.trained}/gain_low"],
        "held_out_proxy_end": last[f"held_out/{run.trained}/gain"],
        "kl_end": last.get("kl/trajectory", np.nan),
        "vendi_end": last["pictures/vendi"],
        **{name: last[name] for name in PRICE if name in last},
        "core_minutes": last["seconds"] / 60,  # one thread
        "gold_end": gold[-1],
        "gold_peak": max(gold),
        "held_out_gold_end": last[f"held_out/{JUDGE}/gain"],
    }


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:])
    found = table(runs, arm, row_of=row_of, varied=VARIED)
    tables = {
        "Means over seeds: what was trained on": means(found, REACHED),
        "Means over seeds: what it took": means(found, PRICE),
        "Means over seeds: gold, which no default was chosen by": means(found, GOLD),
        "Against a gain of 1 base sd": single(found, ["proxy_end"], above=WANTED),
    }
    write_tables(HERE, found, tables)
    draw_curves(by_arm(runs, arm), proxy_and_gold("hps"), HERE / "curves.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
