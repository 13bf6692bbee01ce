"""Critic or optimizer steps? `python experiments/method_2x2/analyse.py [FOLDER]` writes tables and figures.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/method_2x2. TDPO itself is the arm `none`
of reset_ablation, which is read in any case.
"""

import sys
from pathlib import Path
from typing import Any

from src.errors import told_in_one_sentence
from src.report.study import (
    by_arm,
    combined,
    compare,
    means,
    shared_tdpo,
    study_runs,
    table,
    validity,
    write_tables,
)
from src.report.study_plots import draw_curves, proxy_and_gold

HERE = Path(__file__).parent
VARIED = ("algorithm.", "critic", "optimizer.lr", "reset.outgoing")  # the last: of no reset, where it says nothing
LEVELS = (1.0, 1.5, 2.0)
OUTCOMES = ["proxy_end", "gold_at_1.5", "cross_at_1.5", "gold_peak", "overoptimization"]
COLUMNS = ["optimizer_steps", *OUTCOMES, "gold_end", "gold_at_1", "gold_at_2", "kl_at_1.5", "explained_variance"]
MARGIN = 0.2  # base sd; what the predictions call no difference
DDPO, TDPO = "no critic, per trajectory", "critic, per timestep"
PER_STEP, PER_TRAJECTORY = "no critic, per timestep", "critic, per trajectory"
EIGHT_STEPS = "no critic, per trajectory, 8 steps"
PUBLISHED = "published critic, per timestep"
UNTOLD = "critic without the score, per timestep"
CONTRASTS = [
    (TDPO, DDPO),  # the whole of it
    (PER_STEP, DDPO),  # its steps
    (TDPO, PER_STEP),  # its critic
    (PER_TRAJECTORY, DDPO),
    (EIGHT_STEPS, PER_STEP),  # eight steps of all timesteps, or ten of one timestep each, of one learning rate
    (PUBLISHED, PER_STEP),
    (UNTOLD, PER_STEP),
    (TDPO, UNTOLD),
]


def critic(config: dict[str, Any]) -> str:
    if config["critic.state"] == "noisy":
        return "published critic"
    return "critic" if config["critic.score_input"] else "critic without the score"


def arm(config: dict[str, Any]) -> str:
    name = f"no critic, per {config['algorithm.schedule']}"
    if config["algorithm._target_"].endswith("TDPO"):
        name = f"{critic(config)}, per {config['algorithm.schedule']}"
    return f"{name}, 8 steps" if config["algorithm.samples_per_update"] else name


AFTERWARDS = [(PER_STEP, DDPO), (TDPO, PER_TRAJECTORY), (EIGHT_STEPS, DDPO), (EIGHT_STEPS, PER_STEP)]

COMBINED = {
    "interaction: the critic per timestep beyond the critic per trajectory": {
        TDPO: 1,
        PER_STEP: -1,
        PER_TRAJECTORY: -1,
        DDPO: 1,
    },
    "what the steps give beyond what the critic then adds": {PER_STEP: 2, DDPO: -1, TDPO: -1},
}


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:]) + shared_tdpo(HERE.parent / "reset_ablation")
    found = table(runs, arm, LEVELS, varied=VARIED)
    contrasts = [pair for pair in CONTRASTS if set(pair) <= set(found.arm)]
    tables = {
        "Means over seeds": means(found, COLUMNS),
        "Arm against arm, paired by seed": compare(found, OUTCOMES, contrasts, MARGIN),
        "Sums of arms, paired by seed": combined(found, OUTCOMES, COMBINED, MARGIN),
        "Looked at after the runs: KL at equal trained reward, nats": compare(found, ["kl_at_1.5"], AFTERWARDS),
        "Validity": validity(found, TDPO, "explained_variance", above=0.05),
    }
    write_tables(HERE, found, tables)
    draw_curves(by_arm(runs, arm), proxy_and_gold("aesthetic"), HERE / "curves.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
