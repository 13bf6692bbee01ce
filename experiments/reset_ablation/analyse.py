"""Which resets help? `python experiments/reset_ablation/analyse.py [FOLDER]` writes results.csv, tables and figures."""

import sys
from pathlib import Path
from typing import Any

from src.report.runs import find_runs
from src.report.study import by_arm, compare, means, reached_by_all, table, write_tables
from src.report.study_plots import PROXY_AND_GOLD, draw_curves, draw_intervals

HERE = Path(__file__).parent
OUTCOMES = ["gold_at_proxy", "cross_at_proxy", "gold_peak", "overoptimization", "explained_variance"]
COLUMNS = ["proxy_end", "gold_end", *OUTCOMES, "dormant", "reset_share"]
DRAWN = ("none", "full", "active 1.0", "dormant 1.0", "random 0.5")


def arm(config: dict[str, Any]) -> str:
    name = config["reset._target_"].rsplit(".", 1)[-1].removesuffix("Reset").lower().removeprefix("no")
    name = name or "none"
    return name if name in ("none", "full") else f"{name} {config['reset.ratio']}"


def main() -> None:
    runs = find_runs(sys.argv[1:] or ["multirun/reset_ablation"])
    level = reached_by_all(runs)
    found = table(runs, arm, level)
    against_none = compare(found, OUTCOMES, "none")
    heading = f"Means over seeds; equal proxy: +{level:.2f} base sd"
    write_tables(HERE, found, {heading: means(found, COLUMNS), "Against none, paired by seed": against_none})
    arms = by_arm(runs, arm)
    draw_curves({name: arms[name] for name in DRAWN if name in arms}, PROXY_AND_GOLD, HERE / "curves.png")
    gold = against_none[against_none.outcome == "gold_at_proxy"]
    label = f"gold at equal trained reward (+{level:.2f}), difference from no reset [base sd]"
    draw_intervals(gold.arm, gold.difference, (gold.high - gold.low) / 2, label, HERE / "gold_at_proxy.png")


if __name__ == "__main__":
    main()
