"""Which beta keeps near the base? `python experiments/kl_beta/analyse.py [FOLDER]` writes tables and a figure.

Without a FOLDER it reads the runs kept in this folder, and those of multirun/kl_beta.
"""

import sys
from pathlib import Path
from typing import Any

from src.errors import told_in_one_sentence
from src.report.study import against, by_arm, compare, means, study_runs, table, write_tables
from src.report.study_plots import draw_curves, proxy_and_gold

HERE = Path(__file__).parent
VARIED = ("regulariser.",)
LEVELS = (0.5, 1.0, 1.5)
KL = [f"kl_at_{level:g}" for level in LEVELS]
GOLD = [f"gold_at_{level:g}" for level in LEVELS]
ENDS = ["proxy_end", "gold_end", "kl_end", "vendi_end"]
WITHOUT = "none"
BETAS = ("0.0003", "0.001", "0.003")
STEPS = [  # each beta against the next smaller one
    (f"{kind} {beta}", f"{kind} {smaller}" if smaller else WITHOUT)
    for kind in ("kl_reward", "kl_loss")
    for smaller, beta in zip((None, *BETAS), BETAS, strict=False)
]
MARGIN = 0.1  # base sd; what the predictions call no difference


def arm(config: dict[str, Any]) -> str:
    name = config["regulariser._target_"].split(".")[-2]
    return name if name == WITHOUT else f"{name} {config['regulariser.beta']:g}"


def main() -> None:
    runs = study_runs(HERE, sys.argv[1:])
    found = table(runs, arm, LEVELS, varied=VARIED)
    steps = [pair for pair in STEPS if set(pair) <= set(found.arm)]
    tables = {
        "Means over seeds: KL at equal trained reward, nats": means(found, KL),
        "Means over seeds: gold at equal trained reward": means(found, GOLD),
        "Means over seeds: at the end": means(found, ENDS),
        "KL at equal trained reward, beta against the next smaller": compare(found, KL, steps),
        "Gold at equal trained reward, against none": compare(found, GOLD, against(found, WITHOUT), MARGIN),
        "At the end, against none": compare(found, ENDS[:2], against(found, WITHOUT)),
    }
    write_tables(HERE, found, tables)
    draw_curves(by_arm(runs, arm), proxy_and_gold("aesthetic"), HERE / "curves.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
