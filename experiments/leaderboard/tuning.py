"""Which try of tuning the board runs with: `python -m experiments.leaderboard.tuning` writes chosen.yaml and tuning.md.

Of the four tries of an entry on a reward, seed 100: the highest trained reward at the end among those whose KL from the
base stays below BOUND; where none does, the lowest KL. Gold is not looked at, nor any other reward. A try that had to
stop, such as at a NaN, is none to choose. An entry is chosen for when all its tries are there.
"""

import math
from collections.abc import Sequence

import pandas as pd
import yaml

from experiments.leaderboard.entries import HERE, REWARDS, TUNING, Chosen, Entry, entries
from experiments.leaderboard.merit import as_entered
from experiments.leaderboard.plan import TUNED, tried_overrides
from src.errors import UserError, told_in_one_sentence
from src.files import write_text
from src.report.kept import ENDING, restore
from src.report.runs import Run, read_run
from src.report.study import as_markdown
from src.runs.sweeps import job_name

BOUND = 10_000.0  # nats
HEAD = "# Made by python -m experiments.leaderboard.tuning, which says how; tuning.md has every try.\n"


def row_of(run: Run | None) -> dict[str, float]:
    """All that tuning looks at; nan of a run that had to stop, be it before it was evaluated."""
    if run is None or run.had_to_stop:
        return {"trained reward": math.nan, "KL": math.nan}
    last, trained = run.evaluations[-1], as_entered(run).trained
    return {"trained reward": last[f"eval/{trained}/gain"], "KL": last["kl/trajectory"]}


def best(tries: Sequence[dict[str, float]]) -> int | None:
    """The place of the try to run with; of equal ones the first. None where all had to stop."""
    ended = [k for k, row in enumerate(tries) if not math.isnan(row["trained reward"])]
    if not ended:
        return None
    near = [k for k in ended if tries[k]["KL"] <= BOUND]
    return max(near, key=lambda k: tries[k]["trained reward"]) if near else min(ended, key=lambda k: tries[k]["KL"])


def tried(entry: Entry, reward: str) -> list[dict[str, float]] | None:
    """What came of the tries of an entry, in their order; None where one is missing."""
    names = [job_name(tried_overrides(entry, reward, each), []) for each in entry.tries]
    if not all((TUNING / entry.name / f"{name}{ENDING}").exists() for name in names):
        return None
    restore(TUNING / entry.name, TUNED / entry.name)
    return [row_of(read_run(TUNED / entry.name / name)) for name in names]


def main() -> None:
    choices: Chosen = {}
    rows: list[dict] = []
    for entry in (entry for entry in entries().values() if entry.tries):
        for reward in REWARDS:
            found = tried(entry, reward)
            if found is None:
                print(f"not all tries of {entry.name} on {reward} are there yet: experiments/leaderboard/run.sh tune")
                continue
            taken = best(found)
            if taken is None:
                raise UserError(f"all tries of {entry.name} on {reward} had to stop; give it others in entries.yaml.")
            choices.setdefault(entry.name, {})[reward] = list(entry.tries[taken])
            for k, (each, row) in enumerate(zip(entry.tries, found, strict=True)):
                told = {"entry": entry.name, "on": reward, "try": " ".join(each), **row}
                rows.append(told | {"chosen": "yes" if k == taken else ""})
    write_text(HERE / "chosen.yaml", HEAD + yaml.safe_dump(choices, sort_keys=False))
    write_text(HERE / "tuning.md", as_markdown(pd.DataFrame(rows)) + "\n" if rows else "")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
