"""The leaderboard from its kept runs: `python -m experiments.leaderboard` writes results.csv, tables.md and curves.png.

With --anew it holds the runs of multirun/leaderboard_anew (run.sh anew) against those that are kept.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from experiments.leaderboard.entries import CHECK, HERE, MADE, REWARDS, RUNS, entries
from experiments.leaderboard.merit import LEVELS, as_entered, figures
from experiments.leaderboard.plan import ANEW, CHECKED
from experiments.leaderboard.ranking import DIFFERENCE, RANKS, over_rewards, ranking, sequential_plan, verdicts
from src.errors import UserError, told_in_one_sentence
from src.report.kept import ENDING, restore
from src.report.runs import Run, read_run
from src.report.study import against, compare, means, require_same, write_tables
from src.report.study_plots import draw_families
from src.report.watching import shipment

PICTURES = 800  # that a run trains on
SHARED = ("evaluation.", "prompts.", "suite.base", "suite.judges.gold.", "policy.num_steps", "policy.guidance")
SEEDS = 5  # of all methods
BASELINE = "ddpo"
AT = [f"{name}_at_{level:g}" for name in ("gold", "vendi", "sqrt_kl") for level in LEVELS]
MEANS = {
    "shipped": [RANKS, "held_out_gold_shipped", "proxy_shipped", "vendi_shipped", "shipped", "alarm"],
    "at equal trained reward": [*AT, "area"],
    "at equal KL, and over the whole run": [
        *("gold_at_sqrt_kl_20", "gold_at_sqrt_kl_40", "gold_peak", "gold_end", "held_out_gold_end", "overoptimization"),
        *("proxy_end", "kl_end"),
    ],
    "cost": ["reward_queries", "reward_gradients", "optimizer_steps", "seconds"],
}
HELD_AGAINST = [RANKS, "held_out_gold_shipped", "gold_at_1", "gold_at_1.5", "gold_at_2", "vendi_at_1", "area"]
HELD_AGAINST += ["gold_at_sqrt_kl_20", "gold_at_sqrt_kl_40", "gold_peak", "gold_end", "held_out_gold_end"]


def kept_runs(kept: Path, made: Path) -> dict[str, list[Run]]:
    """Kept runs by method, in the order of the entries, then of names; their folders are made where they are not there.

    Raises UserError where there is none.
    """
    there = [folder.name for folder in sorted(kept.glob("*/")) if any(folder.glob(f"*{ENDING}"))]
    found: dict[str, list[Run]] = {}
    for name in sorted(there, key=lambda name: [*entries(), name].index(name)):
        restore(kept / name, made / name)
        files = sorted((kept / name).glob(f"*{ENDING}"))
        runs = [read_run(made / name / file.name.removesuffix(ENDING)) for file in files]
        found[name] = [run for run in runs if run is not None]
    if not found:
        raise UserError("the leaderboard has no run yet: experiments/leaderboard/run.sh makes them.")
    return found


def with_base(runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """And the entries that are the first row of another's runs."""
    derived = {entry.name: runs.get(entry.rows_of or "", []) for entry in entries().values() if not entry.runs}
    bases = {n: [replace(run, evaluations=run.evaluations[:1], iterations=[]) for run in of] for n, of in derived.items()}
    return {name: of for name, of in bases.items() if of} | runs


def rows_of(runs: dict[str, list[Run]]) -> pd.DataFrame:
    """A row a run, by method, reward and seed. Raises UserError on runs that are not of the protocol, or there twice."""
    everything = [run for of in runs.values() for run in of]
    require_same(everything, SHARED, but=("evaluation.every",))
    for run in everything:
        pictures = run.config["iterations"] * run.config["samples_per_iteration"]
        if pictures != PICTURES and run.config["task"] == "finetune":
            raise UserError(f"{run.folder} trains on {pictures} pictures; runs of the leaderboard train on {PICTURES}.")
    found = pd.DataFrame(
        {"arm": name, "train_reward": as_entered(run).trained, "seed": run.config["seed"]}
        | figures(run)
        | {"commit": run.commit}
        for name, of in runs.items()
        for run in of
    )
    twice = found[found.duplicated(["arm", "train_reward", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"{first.arm} has two kept runs on {first.train_reward} of seed {first.seed}, of other settings: remove the "
            f"one that is not the board's from {RUNS / first.arm}."
        )
    return found


def tables_of(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table, those of both rewards first. `found` is what rows_of makes.

    Seeds beyond the first five count in the sequential plan alone.
    """
    first = found[found.seed < SEEDS]
    by_reward = {reward: first[first.train_reward == reward] for reward in REWARDS if reward in set(first.train_reward)}
    both = {"both": over_rewards(first)} if len(by_reward) == len(REWARDS) else {}
    tables, predictions = {}, yaml.safe_load((HERE / "predictions.yaml").read_text(encoding="utf-8"))
    for name, part in (both | by_reward).items():
        tables[f"Ranking by gold shipped, {name_of(name)}"] = ranking(part)
    tables["Predictions"] = verdicts(both | by_reward, predictions)
    if both:
        planned = sequential_plan(over_rewards(found), list(ranking(both["both"]).arm))
        tables["The sequential plan: gold shipped, both rewards"] = planned
    for reward, part in by_reward.items():
        part = in_order_of(part)
        tables |= {f"Means over seeds on {reward}: {name}": means(part, columns) for name, columns in MEANS.items()}
        tables[f"What could not be read on {reward}"] = blanks(part)
        if BASELINE in set(part.arm):
            compared = compare(part, HELD_AGAINST, against(part, BASELINE), DIFFERENCE)
            tables[f"Against {BASELINE} on {reward}, paired by seed"] = compared
    listed = [{"method": e.name, "": e.title, "source": e.source, "asks": e.asks} for e in entries().values()]
    return tables | {"Entries": pd.DataFrame(listed)}


def name_of(part: str) -> str:
    return "both rewards" if part == "both" else f"on {part}"


def in_order_of(part: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the ranking."""
    order = list(ranking(part).arm)
    return part.sort_values("arm", key=lambda arms: arms.map(lambda arm: order.index(arm)), kind="stable")


def blanks(part: pd.DataFrame) -> pd.DataFrame:
    """Of how many runs there is no reading, and why: levels never reached, or leapt over; and who shipped the base."""
    rows = []
    for arm, of in part.groupby("arm", sort=False):
        row = {"arm": arm, "runs": len(of), "had to stop": int(of.stopped.sum())}
        row |= {"no alarm": int((of.alarm == 0).sum()), "ships the base": int((of.shipped == 0).sum())}
        for level in (f"{level:g}" for level in LEVELS):
            never, blank = of[f"gap_at_{level}"].isna(), of[f"gold_at_{level}"].isna()
            row |= {f"never at +{level}": int(never.sum()), f"leaps over +{level}": int((blank & ~never).sum())}
        rows.append(row)
    return pd.DataFrame(rows)


def independent_check(runs: dict[str, list[Run]]) -> pd.DataFrame:
    """Gains of the same fresh pictures by gold, by a second gold, and by the classifier; means over runs, and ranks."""
    judges = {"gold": "gold", "second gold": "other_gold", "classifier": "classifier_top1"}
    rows = []
    for name, of in runs.items():
        ends = [run.evaluations[_checked(run)] for run in of]
        gains = {told: sum(row[f"eval/{key}/gain"] for row in ends) / len(ends) for told, key in judges.items()}
        rows.append({"method": name, "runs": len(of)} | gains)
    found = pd.DataFrame(rows).sort_values("gold", ascending=False, kind="stable")
    for told in judges:
        found[f"rank by {told}"] = found[told].rank(ascending=False, method="min").astype(int)
    return found


def _checked(run: Run) -> int:
    """The evaluation of the weights that are shipped: the last where they alone were evaluated, else what is shipped."""
    alone = "/best" in str(run.config.get("weights"))
    told = None if alone else shipment(run)
    return told.index if told else -1


def agreement(kept: dict[str, list[Run]], anew: dict[str, list[Run]]) -> pd.DataFrame:
    """Runs that were made anew against the kept ones of the same method, reward and seed."""
    rows = []
    for name, of in anew.items():
        before = {run.folder.name: run for run in kept.get(name, [])}
        for run in of:
            other = before.get(run.folder.name)
            if other is not None:
                ours, theirs = figures(run), figures(other)
                same = timeless(run.evaluations) == timeless(other.evaluations)
                row = {"method": name, "run": run.folder.name, "bit for bit": "yes" if same else "no"}
                rows.append(row | {RANKS: ours[RANKS], "kept": theirs[RANKS]})
    return pd.DataFrame(rows)


def timeless(rows: Sequence[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.leaderboard", description=__doc__)
    parser.add_argument("--anew", action="store_true", help="hold runs that were made anew against the kept ones")
    args = parser.parse_args()
    with told_in_one_sentence():
        runs = kept_runs(RUNS, MADE)
        if args.anew:
            names = [folder.name for folder in sorted(ANEW.glob("*/"))]
            anew = {name: [run for f in sorted((ANEW / name).glob("*/")) if (f / "summary.json").exists() and (run := read_run(f))] for name in names}
            print(agreement(runs, anew).to_string(index=False))
            return
        runs = with_base(runs)
        found = rows_of(runs)
        tables = tables_of(found)
        if any(CHECK.glob(f"*/*{ENDING}")):
            tables["Independent check: the same fresh pictures"] = independent_check(kept_runs(CHECK, CHECKED))
        shown = {title: part.rename(columns={"arm": "method"}) for title, part in tables.items()}
        write_tables(HERE, found.rename(columns={"arm": "method"}), shown)
        draw_families(families(runs), HERE / "curves.png")


def families(runs: dict[str, list[Run]]) -> dict[str, dict[str, list[Run]]]:
    """Runs as the board looks at them, by the panel that they are drawn in, and by method."""
    found: dict[str, dict[str, list[Run]]] = {}
    for name, of in runs.items():
        family = entries()[name].family if name in entries() else "entered"
        found.setdefault(family, {})[name] = [as_entered(run) for run in of]
    return found


if __name__ == "__main__":
    main()
