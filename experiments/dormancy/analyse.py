"""How many neurons are dormant? `python experiments/dormancy/analyse.py [FOLDER]` writes tables and a figure."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.report.runs import Run, find_runs
from src.report.study import by_arm, compare, means, only_finished, table, write_tables
from src.report.study_plots import draw_shares

HERE = Path(__file__).parent
TAUS = ("0", "0.025", "0.1")
SHARES = [f"{when}_{tau}" for tau in TAUS for when in ("first", "last", "largest")]
COLUMNS = [*SHARES, "moved_0", "gradient_last_0", "explained_variance"]
MARGIN = 0.05  # of shares; what prediction 2 calls much the same
TRUE, DIVIDED = "true gradients", "gradients / 65,536"
CONTRASTS = [
    (f"linear, {TRUE}, probe of 640", f"ReLU, {TRUE}, probe of 640"),
    *((f"{kind}, {DIVIDED}, probe of 640", f"{kind}, {TRUE}, probe of 640") for kind in ("ReLU", "linear")),
    *((f"{kind}, {TRUE}, probe of 8", f"{kind}, {TRUE}, probe of 640") for kind in ("ReLU", "linear")),
]


def arm(config: dict[str, Any]) -> str:
    if not config["critic.scale_features"]:
        return "official preset"
    activation = {"relu": "ReLU", "none": "linear"}[config["critic.activation"]]
    gradients = TRUE if config["critic_gradient_factor"] == 1 else DIVIDED
    states = min(config["neuron_probe"], config["samples_per_iteration"] * config["num_steps"])
    return f"{activation}, {gradients}, probe of {states}"


def row_of(run: Run, _levels: Any) -> dict[str, Any]:
    """Dormant shares at first, at last and at their largest, and what the critic explained in the later half."""
    found: dict[str, Any] = {}
    for tau in TAUS:
        shares = run.series(f"neurons/dormant_{tau}", run.iterations)
        found |= {f"first_{tau}": shares[0], f"last_{tau}": shares[-1], f"largest_{tau}": max(shares)}
    silent = np.array(run.series("neurons/dormant_0", run.iterations))
    explained = run.series("critic/explained_variance", run.iterations)
    found["moved_0"] = np.abs(silent - silent[0]).max()
    found["gradient_last_0"] = run.iterations[-1]["neurons/gradient_dormant_0"]
    found["explained_variance"] = np.mean(explained[len(explained) // 2 :])
    return found


def main() -> None:
    runs = only_finished(find_runs(sys.argv[1:] or ["multirun/dormancy"]))
    found = table(runs, arm, row_of=row_of)
    contrasts = [pair for pair in CONTRASTS if set(pair) <= set(found.arm)]
    tables = {
        "Means over seeds": means(found, COLUMNS),
        "Shares, arm against arm": compare(found, ["last_0", "last_0.1"], contrasts, MARGIN),
        "Explained variance, arm against arm": compare(found, ["explained_variance"], contrasts),
    }
    write_tables(HERE, found, tables)
    draw_shares(by_arm(runs, arm), "neurons/dormant_0", "share of silent neurons (tau 0)", HERE / "dormant.png")


if __name__ == "__main__":
    main()
