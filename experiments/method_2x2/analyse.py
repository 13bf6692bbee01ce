"""Critic or optimizer steps? `python experiments/method_2x2/analyse.py [FOLDER]` writes tables and figures."""

import sys
from pathlib import Path
from typing import Any

from src.report.runs import find_runs
from src.report.study import by_arm, compare, means, reached_by_all, table, write_tables
from src.report.study_plots import PROXY_AND_GOLD, draw_curves

HERE = Path(__file__).parent
COLUMNS = ["proxy_end", "gold_end", "gold_peak", "overoptimization", "gold_at_proxy", "proxy_at_steps", "gold_at_steps"]


def arm(config: dict[str, Any]) -> str:
    critic = "critic" if config["algorithm._target_"].endswith("TDPO") else "no critic"
    return f"{critic}, per {config['algorithm.schedule']}"


def main() -> None:
    runs = find_runs(sys.argv[1:] or ["multirun/method_2x2"])
    level = reached_by_all(runs)
    steps = min(run.iterations[-1]["optimizer_steps"] for run in runs)
    found = table(runs, arm, level, steps)
    heading = f"Means over seeds; equal proxy: +{level:.2f} base sd; equal optimizer steps: {steps}"
    tables = {heading: means(found, COLUMNS)}
    for schedule in ("timestep", "trajectory"):
        part = found[found.arm.str.endswith(schedule)]
        tables[f"The critic, updates per {schedule}"] = compare(part, COLUMNS, f"no critic, per {schedule}")
    for critic in ("no critic", "critic"):
        part = found[found.arm.str.startswith(critic)]
        tables[f"The schedule, {critic}"] = compare(part, COLUMNS, f"{critic}, per trajectory")
    write_tables(HERE, found, tables)
    draw_curves(by_arm(runs, arm), PROXY_AND_GOLD, HERE / "curves.png")


if __name__ == "__main__":
    main()
