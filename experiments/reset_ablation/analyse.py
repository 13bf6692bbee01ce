"""Which resets help? `python experiments/reset_ablation/analyse.py [FOLDER]` writes results.csv, tables and figures.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/reset_ablation.
"""

import sys
from pathlib import Path
from typing import Any

from src.errors import told_in_one_sentence
from src.report.study import against, by_arm, compare, means, study_runs, table, validity, write_tables
from src.report.study_plots import draw_curves, draw_intervals, proxy_and_gold

HERE = Path(__file__).parent
LEVELS = (1.0, 1.5, 2.0)
REWARDS = ["gold_at_2", "cross_at_2", "gold_peak", "overoptimization"]  # what the paper claims something about
CRITIC = ["explained_variance", "dormant", "recovery"]  # what resets do to the critic
GAINS = ["proxy_end", "gold_end", "held_out_gold_end", "top1_end", "gold_at_1", "gold_at_1.5", *REWARDS]
COLUMNS = [*GAINS, *CRITIC, "dormant_first", "reset_share", "reset_dip", "recovery", "recovered"]
MARGIN = 0.2  # base sd; what the predictions call no difference
DRAWN = ("none", "full", "active 1.0", "dormant 1.0", "random 1.0")


def arm(config: dict[str, Any]) -> str:
    name = config["reset._target_"].rsplit(".", 1)[-1].removesuffix("Reset").lower().removeprefix("no")
    if name in ("", "full"):
        return name or "none"
    zero = ", zero" if config["reset.outgoing"] == "zero" else ""
    return f"{name} {config['reset.ratio']}{zero}"


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:])
    found = table(runs, arm, LEVELS)
    arms = by_arm(runs, arm)
    ratios = [name.removeprefix("active ") for name in arms if name.startswith("active") and "zero" not in name]
    others = [("active 1.0", "full"), ("active 1.0", "active 1.0, zero")]
    others += [(f"active {ratio}", f"{name} {ratio}") for ratio in ratios for name in ("random", "dormant")]
    others = [pair for pair in others if set(pair) <= set(arms)]
    against_none = compare(found, REWARDS, against(found, "none"), MARGIN)
    tables = {
        "Means over seeds": means(found, COLUMNS),
        "Rewards, against none": against_none,
        "Rewards, arm against arm": compare(found, REWARDS, others, MARGIN),
        "The critic, against none": compare(found, CRITIC, against(found, "none")),
        "The critic, arm against arm": compare(found, CRITIC, others),
        "Validity": validity(found, "none", "explained_variance", above=0.05),
    }
    write_tables(HERE, found, tables)
    draw_curves({name: arms[name] for name in DRAWN if name in arms}, proxy_and_gold("aesthetic"), HERE / "curves.png")
    gold = against_none[against_none.outcome == "gold_at_2"]
    label = "gold where the trained reward has gained 2, difference from no reset [base sd]"
    draw_intervals(gold.arm, gold.difference, (gold.high - gold.low) / 2, label, HERE / "gold_at_proxy.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
