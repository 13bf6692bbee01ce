"""How many neurons are dormant? `python experiments/dormancy/analyse.py [FOLDER]` writes tables and a figure.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/dormancy. The ReLU critic with true
gradients is the arm `none` of reset_ablation, which is read in any case.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import told_in_one_sentence
from src.report.runs import Run
from src.report.study import (
    by_arm,
    compare,
    means,
    shared_tdpo,
    single,
    study_runs,
    table,
    write_tables,
)
from src.report.study_plots import draw_shares

HERE = Path(__file__).parent
VARIED = ("algorithm.", "critic", "neuron_probe", "normaliser.", "reset.", "samples_per_prompt", "suite.feature_stride")
VARIED += ("evaluation.every",)  # which training does not notice
TAUS = ("0", "0.025", "0.1")
SHARES = [f"{when}_{tau}" for tau in TAUS for when in ("first", "last", "largest")]
COLUMNS = [
    *SHARES,
    "rise_0",
    "mean_0",
    "few_states_mean_0",
    "few_states_extra_0",
    "gradient_last_0",
    "explained_variance",
]
MARGIN = 0.05  # of shares; what prediction 2 calls much the same
TRUE, DIVIDED, OFFICIAL = "true gradients", "gradients / 65,536", "official preset"
OFFICIAL_BEFORE = "official preset before 0.2.0"  # drew fan_in's initial weights, and looked at eight states
CONTRASTS = [
    (f"linear, {TRUE}", f"ReLU, {TRUE}"),
    *((f"{kind}, {DIVIDED}", f"{kind}, {TRUE}") for kind in ("ReLU", "linear")),
]


def arm(config: dict[str, Any]) -> str:
    if not config["critic.scale_features"]:
        return OFFICIAL if config.get("critic.initial") == "authors" else OFFICIAL_BEFORE
    activation = {"relu": "ReLU", "none": "linear"}[config["critic.activation"]]
    return f"{activation}, {TRUE if config['critic_gradient_factor'] == 1 else DIVIDED}"


def row_of(run: Run, _levels: Any) -> dict[str, Any]:
    """Dormant shares at first, at last and at their largest, and what the critic explained in the later half."""
    found: dict[str, Any] = {}
    for tau in TAUS:
        shares = run.series(f"neurons/dormant_{tau}", run.iterations)
        found |= {f"first_{tau}": shares[0], f"last_{tau}": shares[-1], f"largest_{tau}": max(shares)}
    silent, few = (run.series(f"neurons/{kind}dormant_0", run.iterations) for kind in ("", "few_states_"))
    explained = run.series("critic/explained_variance", run.iterations)
    found |= {"rise_0": silent[-1] - silent[0], "mean_0": np.mean(silent), "few_states_mean_0": np.mean(few)}
    found["few_states_extra_0"] = np.mean(few) - np.mean(silent)  # silent on eight states and not on the whole probe
    found["gradient_last_0"] = run.iterations[-1]["neurons/gradient_dormant_0"]
    found["explained_variance"] = np.mean(explained[len(explained) // 2 :])
    return found


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:]) + shared_tdpo(HERE.parent / "reset_ablation")
    found = table(runs, arm, row_of=row_of, varied=VARIED)
    contrasts = [pair for pair in CONTRASTS if set(pair) <= set(found.arm)]
    probed_whole = found[found.arm != OFFICIAL_BEFORE]  # of which eight states are the whole probe
    tables = {
        "Means over seeds": means(found, COLUMNS),
        "Shares, arm against arm": compare(found, ["last_0", "mean_0", "last_0.1"], contrasts, MARGIN),
        "Explained variance, arm against arm": compare(found, ["explained_variance"], contrasts),
        "Against nothing": single(found, ["rise_0", "explained_variance"]),
        "Silent on eight states and not on the whole probe": single(probed_whole, ["few_states_extra_0"], above=MARGIN),
    }
    write_tables(HERE, found, tables)
    draw_shares(by_arm(runs, arm), "neurons/dormant_0", "share of silent neurons (tau 0)", HERE / "dormant.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
