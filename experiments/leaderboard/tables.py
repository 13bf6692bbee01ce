"""The tables of the leaderboard, from rows of runs: who is ahead, what was read where, what could not be read."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import yaml

from experiments.leaderboard.entries import HERE, PICTURES, REWARDS, RUNS, entries
from experiments.leaderboard.merit import DISTANCES, LEVELS, as_entered, figures
from experiments.leaderboard.ranking import DIFFERENCE, RANKS, SEEDS, over_rewards, ranking, sequential_plan, verdicts
from src.errors import UserError
from src.report.runs import Run
from src.report.study import against, compare, means, require_same
from src.report.watching import shipment

Runs = dict[str, list[Run]]  # by method
SHARED = ("evaluation.", "prompts.", "suite.base", "suite.judges.gold.", "policy.num_steps", "policy.guidance")
BASELINE = "ddpo"
AT = [f"{name}_at_{level:g}" for name in ("gold", "vendi", "sqrt_kl") for level in LEVELS]
AREAS = [f"area_to_{level:g}" for level in LEVELS]
AT_DISTANCE = [f"gold_at_sqrt_kl_{level:g}" for level in DISTANCES]
OVER_THE_RUN = ["gold_peak", "gold_end", "held_out_gold_end"]
MEANS = {
    "shipped": [RANKS, "gold_at_alarm", "held_out_gold_shipped", "proxy_shipped", "vendi_shipped", "shipped", "alarm"],
    "at equal trained reward": [*AT, *AREAS],
    "at equal KL, and over the whole run": [*AT_DISTANCE, *OVER_THE_RUN, "overoptimization", "proxy_end", "kl_end"],
    "cost": [
        *("reward_queries", "reward_gradients", "optimizer_steps", "seconds"),
        *("proxy_at_budget", "gold_at_budget"),
    ],
}
GOLD_AT = [f"gold_at_{level:g}" for level in LEVELS]
COMPARED = [
    RANKS,
    "gold_at_alarm",
    "held_out_gold_shipped",
    *GOLD_AT,
    "vendi_at_1",
    *AREAS,
    *AT_DISTANCE,
    *OVER_THE_RUN,
]
JUDGES = {"gold": "gold", "second gold": "other_gold", "classifier": "classifier_top1"}


def with_base(runs: Runs) -> Runs:
    """And the entries that are the first row, the base's, of another's runs."""
    found: Runs = {}
    for entry in (entry for entry in entries().values() if entry.rows_of in runs):
        of = runs[entry.rows_of]
        found[entry.name] = [replace(run, evaluations=run.evaluations[:1], iterations=[]) for run in of]
    return found | runs


def rows_of(runs: Runs) -> pd.DataFrame:
    """A row a run, by method (`arm`), reward and seed.

    Raises UserError on runs that are not of the protocol, and on two of one method, reward and seed.
    """
    everything = [run for of in runs.values() for run in of]
    require_same(everything, SHARED, but=("evaluation.every", "evaluation.seed"))
    for run in everything:
        pictures = run.config["iterations"] * run.config["samples_per_iteration"]
        wanted = PICTURES.get(as_entered(run).trained, pictures)
        if pictures != wanted and run.config["task"] == "finetune":
            raise UserError(f"{run.folder} trains on {pictures} pictures; runs of the leaderboard train on {wanted}.")
    named = [(name, run) for name, of in runs.items() for run in of]
    found = pd.DataFrame(
        {"arm": name, "train_reward": as_entered(run).trained, "seed": run.config["seed"]}
        | figures(run)
        | {"commit": run.commit}
        for name, run in named
    )
    twice = found[found.duplicated(["arm", "train_reward", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"{first.arm} has two kept runs on {first.train_reward} of seed {first.seed}, of two settings: remove the "
            f"one that is not the board's from {RUNS / first.arm}."
        )
    return found


def tables_of(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table by its title, those that rank first. `found` is what rows_of makes.

    Seeds beyond the first five count in the sequential plan alone.
    """
    found = found[found.train_reward.isin(REWARDS)]
    first = found[found.seed < SEEDS]
    both, by_reward = over_rewards(first, REWARDS), {reward: first[first.train_reward == reward] for reward in REWARDS}
    parts = {name: part for name, part in (by_reward | {"both": both}).items() if len(part)}
    tables = {}
    for name, part in parts.items():
        tables[f"Ranking by gold shipped, {'both rewards' if name == 'both' else f'on {name}'}"] = ranking(part)
    predictions = yaml.safe_load((HERE / "predictions.yaml").read_text(encoding="utf-8"))
    tables["Predictions"] = verdicts(parts, predictions)
    if len(both):
        planned = sequential_plan(over_rewards(found, REWARDS), list(ranking(both).arm))
        tables["The sequential plan: gold shipped, both rewards"] = planned
    for reward in (reward for reward in REWARDS if reward in parts):
        tables |= tables_on(reward, parts[reward])
    listed = [{"method": e.name, "": e.title, "source": e.source, "asks": e.asks} for e in entries().values()]
    return tables | {"Entries": pd.DataFrame(listed)}


def tables_on(reward: str, part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of the runs on one reward, methods in the order of the ranking."""
    order = list(ranking(part).arm)
    part = part.sort_values("arm", key=lambda arms: arms.map(order.index), kind="stable")
    tables = {f"Means over seeds on {reward}: {name}": means(part, columns) for name, columns in MEANS.items()}
    tables[f"What could not be read on {reward}"] = blanks(part)
    if BASELINE in order:
        each = [compare(part, [column], against(part, BASELINE), DIFFERENCE) for column in COMPARED]
        tables[f"Against {BASELINE} on {reward}, paired by seed"] = pd.concat(each)
    return tables


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


def independent_check(runs: Runs) -> pd.DataFrame:
    """Gains of the same fresh pictures by gold, by a second gold and by the classifier: means over runs, and ranks."""
    rows = []
    for name, of in runs.items():
        ends = [run.evaluations[_checked(run)] for run in of]
        gains = {told: sum(row[f"eval/{key}/gain"] for row in ends) / len(ends) for told, key in JUDGES.items()}
        rows.append({"method": name, "runs": len(of)} | gains)
    found = pd.DataFrame(rows).sort_values("gold", ascending=False, kind="stable")
    for told in JUDGES:
        found[f"rank by {told}"] = found[told].rank(ascending=False, method="min").astype(int)
    return found


def _checked(run: Run) -> int:
    """Which evaluation is of what is shipped: the last, where weights that were shipped are all that was evaluated."""
    told = None if "/best" in str(run.config.get("weights")) else shipment(run)
    return told.index if told else -1


def agreement(kept: Runs, anew: Runs) -> pd.DataFrame:
    """Runs that were made anew, against the kept ones of the same method, reward and seed."""
    rows = []
    for name, of in anew.items():
        before = {_what(run): run for run in kept.get(name, [])}
        for run in (run for run in of if _what(run) in before):
            reward, seed = _what(run)
            other = before[reward, seed]
            same = _timeless(run.evaluations) == _timeless(other.evaluations)
            row = {"method": name, "train_reward": reward, "seed": seed, "bit for bit": "yes" if same else "no"}
            rows.append(row | {RANKS: figures(run)[RANKS], f"{RANKS}, kept": figures(other)[RANKS]})
    return pd.DataFrame(rows)


def _what(run: Run) -> tuple[str, int]:
    return as_entered(run).trained, run.config["seed"]


def _timeless(rows: Sequence[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
