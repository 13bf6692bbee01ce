"""How many neurons are dormant? `python experiments/dormancy/analyse.py [FOLDER]` writes tables and a figure.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/dormancy; the ReLU critic with true
gradients is reset_ablation's arm `none`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.errors import told_in_one_sentence
from src.report.runs import Run
from src.report.study import (
    by_arm,
    compare,
    judged,
    means,
    paired,
    study_runs,
    table,
    without_resets,
    write_tables,
)
from src.report.study_plots import draw_shares

HERE = Path(__file__).parent
TAUS = ("0", "0.025", "0.1")
SHARES = [f"{when}_{tau}" for tau in TAUS for when in ("first", "last", "largest")]
COLUMNS = [*SHARES, "moved_0", "mean_0", "few_states_mean_0", "gradient_last_0", "explained_variance"]
MARGIN = 0.05  # of shares; what prediction 2 calls much the same
TRUE, DIVIDED = "true gradients", "gradients / 65,536"
CONTRASTS = [
    (f"linear, {TRUE}", f"ReLU, {TRUE}"),
    *((f"{kind}, {DIVIDED}", f"{kind}, {TRUE}") for kind in ("ReLU", "linear")),
]


def arm(config: dict[str, Any]) -> str:
    if not config["critic.scale_features"]:
        return "official preset"
    activation = {"relu": "ReLU", "none": "linear"}[config["critic.activation"]]
    return f"{activation}, {TRUE if config['critic_gradient_factor'] == 1 else DIVIDED}"


def row_of(run: Run, _levels: Any) -> dict[str, Any]:
    """Dormant shares at first, at last and at their largest, and what the critic explained in the later half."""
    found: dict[str, Any] = {}
    for tau in TAUS:
        shares = run.series(f"neurons/dormant_{tau}", run.iterations)
        found |= {f"first_{tau}": shares[0], f"last_{tau}": shares[-1], f"largest_{tau}": max(shares)}
    silent = np.array(run.series("neurons/dormant_0", run.iterations))
    explained = run.series("critic/explained_variance", run.iterations)
    found["moved_0"] = np.abs(silent - silent[0]).max()
    found["mean_0"] = silent.mean()
    found["few_states_mean_0"] = np.mean(run.series("neurons/few_states_dormant_0", run.iterations))
    found["gradient_last_0"] = run.iterations[-1]["neurons/gradient_dormant_0"]
    found["explained_variance"] = np.mean(explained[len(explained) // 2 :])
    return found


def few_against_many(found: pd.DataFrame) -> pd.DataFrame:
    """Neurons that are silent on eight states and not on the whole probe: shares, run by run, means over iterations."""
    rows = [
        {"arm": name, "runs": len(part), **paired(part.few_states_mean_0 - part.mean_0)}
        for name, part in found.groupby("arm", sort=False)
        if name != "official preset"  # whose whole probe is eight states
    ]
    return judged(pd.DataFrame(rows), MARGIN)


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:]) + without_resets(study_runs(HERE.parent / "reset_ablation"))
    found = table(runs, arm, row_of=row_of)
    contrasts = [pair for pair in CONTRASTS if set(pair) <= set(found.arm)]
    tables = {
        "Means over seeds": means(found, COLUMNS),
        "Shares, arm against arm": compare(found, ["last_0", "mean_0", "last_0.1"], contrasts, MARGIN),
        "Eight states against the whole probe": few_against_many(found),
        "Explained variance, arm against arm": compare(found, ["explained_variance"], contrasts),
    }
    write_tables(HERE, found, tables)
    draw_shares(by_arm(runs, arm), "neurons/dormant_0", "share of silent neurons (tau 0)", HERE / "dormant.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
