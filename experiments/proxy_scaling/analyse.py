"""Do more comparisons help? `python experiments/proxy_scaling/analyse.py [FOLDER]` writes tables and figures."""

import sys
from pathlib import Path
from typing import Any

from src.errors import told_in_one_sentence
from src.files import read_json
from src.report.figures import JUDGE
from src.report.runs import Run, find_runs, flat
from src.report.study import against, compare, crossing, means, table, write_tables
from src.report.study_plots import draw_curves, proxy_and_gold
from src.runs.folder import read_config

HERE = Path(__file__).parent
COLUMNS = ["accuracy", "proxy_end", "gold_peak", "gold_end", "overoptimization", "gold_at_kl", "lost_at_kl"]


def reward_folder(config: dict[str, Any]) -> Path:
    """Of the run that trained the reward."""
    return Path(config["suite.rewards.hps.path"]).parent


def arm(config: dict[str, Any]) -> str:
    pairs = read_config(reward_folder(config), ["pairs"])["pairs"]
    return f"{pairs:>5,} comparisons"


def accuracy(run: Run) -> float:
    """Share of unseen pairs that the run's reward orders as gold does."""
    test = read_json(reward_folder(flat(run.config)) / "summary.json")["test"]
    return float(test["mixed"]["all"])


def main() -> None:
    runs = find_runs(sys.argv[1:] or ["multirun/proxy_scaling"])
    found = table(runs, arm)
    by_row = {(arm(flat(run.config)), run.config["seed"]): run for run in runs}
    in_order = [by_row[key] for key in zip(found.arm, found.seed, strict=True)]
    level = min(max(run.series("kl/trajectory")) for run in runs)
    found["accuracy"] = [accuracy(run) for run in in_order]
    for run, row in zip(in_order, found.index, strict=True):
        kl, gold = run.series("kl/trajectory"), run.series(f"eval/{JUDGE}/gain")
        at = crossing(kl, gold, level)
        before = [gain for gain, nats in zip(gold, kl, strict=True) if nats <= level]
        found.loc[row, ["gold_at_kl", "lost_at_kl"]] = at, max(before) - at
    found = found.dropna(axis=1, how="all")  # what is a critic's
    sizes = list(dict.fromkeys(found.arm))
    tables = {
        f"Means over seeds; equal KL: {level:,.0f} nats": means(found, COLUMNS),
        "Against the fewest comparisons": compare(found, COLUMNS[1:], against(found, sizes[0])),
    }
    write_tables(HERE, found, tables)
    arms = {size.strip(): [by_row[key] for key in by_row if key[0] == size] for size in sizes}
    draw_curves(arms, proxy_and_gold("hps"), HERE / "curves.png")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
