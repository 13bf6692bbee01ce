"""Which resets help? `python experiments/reset_ablation/analyse.py [FOLDER]` writes results.csv, tables and figures.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/reset_ablation.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from src.errors import told_in_one_sentence
from src.report.study import (
    against,
    by_arm,
    compare,
    judged,
    means,
    slopes,
    study_runs,
    table,
    validity,
    write_tables,
)
from src.report.study_plots import draw_curves, draw_differences, proxy_and_gold

HERE = Path(__file__).parent
VARIED = ("reset.",)
LEVELS = (1.0, 1.5, 2.0, 2.5)
AT_EQUAL_REWARD = ["gold_at_2", "gold_at_2.5", "cross_at_2", "gold_peak", "overoptimization"]
AT_THE_END = ["proxy_end", "gold_end", "held_out_gold_end", "cross_end", "top1_end"]
CRITIC = ["explained_variance", "dormant", "recovery"]  # what resets do to the critic
COLUMNS = [*AT_THE_END, "gold_at_1", "gold_at_1.5", *AT_EQUAL_REWARD, *CRITIC]
COLUMNS += ["dormant_first", "reset_share", "reset_dip", "recovered"]
CRITIC_PANEL = "what the critic explains of the return:\nits explained variance, less that without resets"
GOLD_PANEL = "gold where the trained reward has gained 2,\nless that without resets [base sd]"
MARGIN = 0.2  # base sd; what the predictions call no difference
DRAWN = ("none", "full", "active 1.0", "dormant 1.0", "random 1.0")
SLOPES = ["explained_variance", "gold_at_2", "gold_end", "proxy_end"]
CLAIMS = [  # of the paper: outcome, arm, the arm that it is held against
    ("gold_at_2", "active 1.0", "none"),
    ("gold_at_2", "active 1.0", "random 1.0"),
    ("gold_at_2", "dormant 1.0", "none"),
    ("gold_at_2", "full", "active 1.0"),
    ("cross_at_2", "active 1.0", "none"),
]


def arm(config: dict[str, Any]) -> str:
    name = config["reset._target_"].rsplit(".", 1)[-1].removesuffix("Reset").lower().removeprefix("no")
    if name in ("", "full"):
        return name or "none"
    zero = ", zero" if config["reset.outgoing"] == "zero" else ""
    return f"{name} {config['reset.ratio']}{zero}"


def the_claims(found: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims as one family of their own."""
    known = [claim for claim in CLAIMS if set(claim[1:]) <= set(found.arm)]
    rows = [compare(found, [outcome], [(arm, other)]) for outcome, arm, other in known]
    return judged(pd.concat(rows, ignore_index=True), MARGIN) if rows else pd.DataFrame()


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:])
    found = table(runs, arm, LEVELS, varied=VARIED)
    arms = by_arm(runs, arm)
    ratios = [name.removeprefix("active ") for name in arms if name.startswith("active") and "zero" not in name]
    others = [("active 1.0", "full"), ("active 1.0, zero", "active 1.0")]
    others += [(f"active {ratio}", f"{name} {ratio}") for ratio in ratios for name in ("random", "dormant")]
    others = [pair for pair in others if set(pair) <= set(arms)]
    from_none = against(found, "none")
    at_equal_reward = compare(found, AT_EQUAL_REWARD, from_none, MARGIN)
    critic = compare(found, CRITIC, from_none)
    tables = {
        "Means over seeds": means(found, COLUMNS),
        "The paper's claims": the_claims(found),
        "At equal trained reward, against none": at_equal_reward,
        "At equal trained reward, arm against arm": compare(found, AT_EQUAL_REWARD, others, MARGIN),
        "At the end, against none": compare(found, AT_THE_END, from_none, MARGIN),
        "At the end, arm against arm": compare(found, AT_THE_END, others, MARGIN),
        "The critic, against none": critic,
        "The critic, arm against arm": compare(found, CRITIC, others),
        "By the share that is reset": slopes(found.fillna({"reset_share": 0.0}), SLOPES, "reset_share"),
        "Validity": validity(found, "none", "explained_variance", above=0.05),
    }
    write_tables(HERE, found, tables)
    draw_curves({name: arms[name] for name in DRAWN if name in arms}, proxy_and_gold("aesthetic"), HERE / "curves.png")
    if from_none:
        panels = {
            CRITIC_PANEL: critic[critic.outcome == "explained_variance"],
            GOLD_PANEL: at_equal_reward[at_equal_reward.outcome == "gold_at_2"],
        }
        draw_differences(panels, HERE / "differences.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
