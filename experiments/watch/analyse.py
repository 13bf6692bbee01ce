"""How good is the watch? `python experiments/watch/analyse.py [FOLDER...]` writes results.csv and tables.md.

Chooses the rule on seed 0 of runs on hps and on aesthetic, and reports it on all others.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from src.errors import told_in_one_sentence
from src.metrics.watching import Keep, Signal
from src.report.runs import Run, find_runs
from src.report.study import only_finished, write_tables
from src.report.watching import Detection, detect

HERE = Path(__file__).parent
MARGINS = {  # of every other signal in base sd
    "diversity": (0.02, 0.05, 0.1, 0.15, 0.2),
    "nearness": (10, 20, 30, 40, 50, 60, 80),
    "plainness": (0.01, 0.02, 0.03, 0.04, 0.05, 0.07),
}
BASE_SD = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
BEFORE = {"signal": "trained", "margin": 0.1, "patience": 1, "keep": "peak"}  # what was shipped before this study


def rules() -> list[dict[str, Any]]:
    grid = [
        {"signal": signal, "margin": margin, "patience": patience, "keep": keep}
        for signal in get_args(Signal)
        for margin, patience, keep in itertools.product(MARGINS.get(signal, BASE_SD), (1, 2), get_args(Keep))
    ]
    # a signal that falls from the start has its peak at the base
    return [rule for rule in grid if rule["keep"] == "last" or rule["signal"] in ("trained", "others", "all")]


def judged(runs: list[Run], rule: dict[str, Any]) -> pd.DataFrame:
    """One row a run: what the rule would have said and kept."""
    rows = []
    for run in runs:
        found = detect(run, **rule)
        assert found is not None, run.folder
        rows.append({"run": name_of(run), **figures(run, found)})
    return pd.DataFrame(rows)


def figures(run: Run, found: Detection) -> dict[str, Any]:
    peak = max(run.series("eval/gold/gain"))
    return {
        "gold peak": peak,
        "at": found.judge_peak,
        "alarm": found.alarm,
        "delay": found.delay,
        "overoptimized": found.overoptimized,
        "verdict": found.verdict,
        "gold kept": found.shipped,
        "gold at the end": found.last,
        "lost by the watch": peak - found.shipped,
        "lost without it": peak - found.last,
    }


def name_of(run: Run) -> str:
    pressed = "" if run.config["budget"] == "study" else ", default budget"
    return f"{run.config['name'].removesuffix('_hps')} on {run.trained}, seed {run.config['seed']}{pressed}"


def summary(found: pd.DataFrame) -> dict[str, Any]:
    return {
        "runs": len(found),
        "gold lost": found["lost by the watch"].mean(),
        "worst": found["lost by the watch"].max(),
        "overoptimized": int(found["overoptimized"].sum()),
        **{name: int((found["verdict"] == name).sum()) for name in ("missed", "false alarm", "early")},
        "median delay": found["delay"].dropna().median(),
    }


def best_of(rules: list[dict[str, Any]], runs: list[Run]) -> pd.DataFrame:
    """The rules from the best to the worst on these runs, with how they did."""
    tried = pd.DataFrame([{**rule, **summary(judged(runs, rule))} for rule in rules])
    return tried.sort_values(["gold lost", "false alarm", "missed"], kind="stable")


def chosen_without(runs: list[Run], rules: list[dict[str, Any]], reward: str) -> pd.DataFrame:
    """How the rule that is best on the runs of all other rewards does on those of this one."""
    rule = best_of(rules, [run for run in runs if run.trained != reward]).iloc[0][list(BEFORE)].to_dict()
    return pd.DataFrame([{"reward": reward, **rule, **summary(judged([r for r in runs if r.trained == reward], rule))}])


def main() -> None:
    runs = only_finished(find_runs(sys.argv[1:] or ["multirun/watch"]))
    quiet = [run for run in runs if run.config["budget"] == "default"]
    runs = [run for run in runs if run not in quiet]
    chosen_on = [run for run in runs if run.trained in ("hps", "aesthetic") and run.config["seed"] == 0]
    confirmed_on = [run for run in runs if run not in chosen_on]
    possible = [rule for rule in rules() if all(detect(run, **rule) for run in runs)]
    best = best_of(possible, chosen_on).groupby("signal", sort=False).head(1)
    best_rules = best[list(BEFORE)].to_dict("records")
    rule = best_rules[0]
    everything = judged(runs + quiet, rule)
    without = judged(confirmed_on, rule)["lost without it"]
    compared = [
        {"rule": "shipped before", **summary(judged(confirmed_on, BEFORE))},
        {"rule": "none: the last weights", "runs": len(without), "gold lost": without.mean()},
    ]
    everything.insert(1, "chosen on", [run in chosen_on for run in runs + quiet])
    unpressed = [{**one, **summary(judged(quiet, one))} for one in best_rules] if quiet else []
    left_out = pd.concat([chosen_without(runs, possible, reward) for reward in dict.fromkeys(r.trained for r in runs)])
    confirmed = pd.DataFrame([{**one, **summary(judged(confirmed_on, one))} for one in best_rules])
    write_tables(
        HERE,
        everything,
        {
            "The best rule of each signal, on the runs it was chosen on": best,
            "The same rules on the other runs": confirmed,
            "For comparison, on the other runs": pd.DataFrame(compared),
            "The same rules on runs at the default budget": pd.DataFrame(unpressed),
            "Each reward by the rule that is best on the runs of all others": left_out,
            f"Every run, by {rule}": everything,
        },
    )


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
