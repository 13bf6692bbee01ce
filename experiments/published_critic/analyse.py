"""What does the published critic do? `python experiments/published_critic/analyse.py [FOLDER]` writes tables, a figure.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/published_critic.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import told_in_one_sentence
from src.report.runs import Run
from src.report.study import by_arm, compare, means, single, study_runs, table, write_tables
from src.report.study_plots import draw_shares

HERE = Path(__file__).parent
VARIED = ("critic.initial", "critic_gradient_factor", "reset.")
FIRST_RESET, EVERY, LAST = 10, 10, 5  # iterations
SPREADS = ["value_std_first", "value_std_smallest", "value_std_largest", "value_std_from_10", "value_std_after_reset"]
DORMANT = ["dormant_0", "few_states_dormant_0", "few_states_extra_0", "reset_share"]
EFFECTS = ["explained_after_reset", "trained_late"]
SETTINGS = [f"{slip}, {weights}" for slip in ("slip", "no slip") for weights in ("authors' weights", "fan_in weights")]
SAME, FEW = 0.02, 0.05  # base sd, share of neurons: the predictions' margins


def arm(config: dict[str, Any]) -> str:
    slip = "no slip" if config["critic_gradient_factor"] == 1 else "slip"
    weights = {"authors": "authors' weights", "fan_in": "fan_in weights"}[config["critic.initial"]]
    reset = {"NoReset": "none", "ActiveReset": "active", "FullReset": "full"}[config["reset._target_"].split(".")[-1]]
    return f"{slip}, {weights}, {reset}"


def row_of(run: Run, _levels: Any) -> dict[str, Any]:
    """Spread of V, dormant neurons by both probes, what V explains after the first reset, and the reward at the end."""
    spread = np.array(run.series("critic/value_std", run.iterations))
    silent, few = (np.mean(run.series(f"neurons/{kind}dormant_0", run.iterations)) for kind in ("", "few_states_"))
    explained = run.series("critic/explained_variance", run.iterations)
    reward = np.array(run.series(f"reward/{run.trained}/mean", run.iterations)[-LAST:])
    base = run.evaluations[0]
    shares = [row["reset/share"] for row in run.iterations if row.get("reset/share")]
    return {
        "value_std_first": spread[0],
        "value_std_smallest": spread.min(),
        "value_std_largest": spread.max(),
        "value_std_from_10": spread[FIRST_RESET - 1 :].min(),
        "value_std_after_reset": spread[FIRST_RESET],
        "dormant_0": silent,
        "few_states_dormant_0": few,
        "few_states_extra_0": few - silent,
        "reset_share": np.mean(shares) if shares else 0.0,
        "explained_after_reset": np.mean(explained[FIRST_RESET : FIRST_RESET + EVERY]),
        "trained_late": (reward.mean() - base[f"eval/{run.trained}/mean"]) / base[f"eval/{run.trained}/base_sd"],
    }


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:])
    found = table(runs, arm, row_of=row_of, varied=VARIED)
    pairs = [(f"{setting}, {reset}", f"{setting}, none") for setting in SETTINGS for reset in ("active", "full")]
    pairs = [pair for pair in pairs if set(pair) <= set(found.arm)]
    tables = {
        "Means over seeds: spread of V": means(found, SPREADS),
        "Means over seeds: dormant neurons": means(found, DORMANT),
        "Means over seeds: what follows": means(found, EFFECTS),
        "Silent on eight states and not on 64": single(found, ["few_states_extra_0"], above=FEW),
        "Explained variance in the ten iterations after the first reset": compare(found, EFFECTS[:1], pairs),
        "Trained reward, last five iterations": compare(found, EFFECTS[1:], pairs, SAME),
    }
    write_tables(HERE, found, tables)
    without = {name: each for name, each in by_arm(runs, arm).items() if name.endswith("none")}
    draw_shares(without, "neurons/dormant_0", "share of silent neurons (tau 0)", HERE / "dormant.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
