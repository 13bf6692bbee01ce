"""The commands of the leaderboard, one a line, in the order in which they are best run; what is kept is left out.

`python -m experiments.leaderboard.plan board` prints them, and run.sh runs them. `tune` prints those of tuning, `anew`
those of the board once more, into a folder of their own, `check` those of the independent check, and `enter NAME
OVERRIDES...` those of a method that is not in entries.yaml.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.leaderboard.entries import (
    CHECK,
    HERE,
    MADE,
    REWARDS,
    RUNS,
    TUNING,
    Entry,
    choice_for,
    entries,
    some,
)
from experiments.leaderboard.ranking import in_order
from src.errors import UserError, told_in_one_sentence
from src.report.kept import ENDING
from src.runs.sweeps import job_name

ANEW, TUNED, CHECKED = (MADE.with_name(f"{MADE.name}_{name}") for name in ("anew", "tuning", "check"))
TUNING_SEED = 100
SHORT = ["evaluation.every=25", "callbacks.watch=null"]  # of tuning, which looks at the base and the end
FRESH = ["evaluation.seed=1000", "evaluation.samples_per_prompt=4"]  # pictures that no evaluation has drawn
ENDS = 3  # how many from either end of the ranking are checked
HOW = ("hydra/", "hydra.", "logger")  # options that say how runs are run, and change nothing in them
STUDY = [sys.executable, "-m", "src.run", "-m"]


@dataclass(frozen=True)
class Job:
    """A run, or several seeds of one: where it is made, where it is kept, and what is asked for."""

    made: Path
    kept: Path | None
    overrides: list[str]

    def is_kept(self) -> bool:
        return self.kept is not None and (self.kept / f"{job_name(self.overrides, [])}{ENDING}").exists()

    def line(self, options: Sequence[str]) -> str:
        """The command, and the one that keeps what it leaves."""
        run = shlex.join([*STUDY, *self.overrides, f"hydra.sweep.dir={self.made}", *options])
        if self.kept is None:
            return run
        keep = shlex.join([sys.executable, "-m", "src.report.kept", "keep", str(self.made), str(self.kept), "--light"])
        return f"{run}; done=$?; {keep} && exit $done"


def folder_of(entry: Entry, reward: str, seed: int | str, made: Path) -> Path:
    """The run folder of one seed."""
    return made / entry.name / job_name(overrides_of(entry, reward, seed, made), [])


def overrides_of(entry: Entry, reward: str, seed: int | str, made: Path) -> list[str]:
    asked = entry.asked(reward, seed, [] if entry.weights_of else choice_for(entry, reward))
    if entry.weights_of is None:
        return asked
    return [*asked, f"weights='{folder_of(entries()[entry.weights_of], reward, seed, made)}'"]


def board(
    methods: Iterable[Entry], rewards: Sequence[str], blocks: Sequence[str], made: Path, kept: Path | None
) -> Iterator[Job]:
    """Block by block of seeds all entries, so that each block makes a table. A block may be several seeds: 0,1."""
    for block in blocks:
        for entry in (entry for entry in methods if entry.runs):
            for reward in rewards:
                jobs = [
                    Job(made / entry.name, kept and kept / entry.name, overrides_of(entry, reward, seed, made))
                    for seed in block.split(",")
                ]
                left = [job for job in jobs if not job.is_kept()]
                if len(left) == len(jobs) > 1 and entry.weights_of is None:
                    yield Job(left[0].made, left[0].kept, overrides_of(entry, reward, block, made))
                else:
                    yield from left


def tuning(methods: Iterable[Entry], rewards: Sequence[str]) -> Iterator[Job]:
    """Every try of every entry that has some."""
    for entry in methods:
        for reward in rewards:
            for tried in entry.tries:
                job = Job(TUNED / entry.name, TUNING / entry.name, tried_overrides(entry, reward, tried))
                if not job.is_kept():
                    yield job


def tried_overrides(entry: Entry, reward: str, tried: Sequence[str]) -> list[str]:
    return [*entry.asked(reward, TUNING_SEED, tried), *SHORT]


def checks(rewards: Sequence[str], blocks: Sequence[str], other_gold: str) -> Iterator[Job]:
    """Fresh pictures of the top and the bottom of the ranking, judged by a second gold as well."""
    judge = f"+suite.judges.other_gold={{_target_:src.mini.gold.GoldAnnotator,path:'{other_gold}'}}"
    order = in_order(pd.read_csv(HERE / "results.csv"), REWARDS)
    listed = [entries()[name] for name in order if name in entries() and entries()[name].runs]
    for entry in dict.fromkeys([*listed[:ENDS], *listed[-ENDS:]]):
        for reward in rewards:
            for seed in (seed for block in blocks for seed in block.split(",")):
                asked = overrides_of(entry, reward, seed, MADE)
                if entry.takes or entry.tune:  # has trained
                    average = "/ema" if "regulariser=ema" in entry.overrides else ""
                    asked = [
                        "+experiment=evaluate",
                        "threads=1",
                        f"weights='{folder_of(entry, reward, seed, MADE)}/best{average}'",
                    ]
                job = Job(CHECKED / entry.name, CHECK / entry.name, [*asked, judge, *FRESH])
                if not job.is_kept():
                    yield job


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.leaderboard.plan", description=__doc__)
    parser.add_argument("what", choices=("board", "tune", "anew", "check", "enter"))
    parser.add_argument("options", nargs="*", help="handed on to runs; of `enter` a name, and its overrides")
    parser.add_argument("--seeds", default="", help="blocks of seeds: '0 1 2 3 4', or '0,1 2,3,4'")
    parser.add_argument("--methods", default="", help="names of entries, all if empty")
    parser.add_argument("--rewards", default="")
    parser.add_argument("--other-gold", default="data/mini/other_gold", help="folder of a second gold, for `check`")
    args = parser.parse_args()
    with told_in_one_sentence():
        for line in lines(args):
            print(line)


def lines(args: argparse.Namespace) -> list[str]:
    options, blocks = args.options, (args.seeds or "0 1 2 3 4").split()
    rewards = some(args.rewards, list(REWARDS), "REWARDS")
    if args.what == "enter":
        return [job.line([]) for job in board([entered(options)], rewards, blocks, MADE, RUNS)]
    if others := [option for option in options if not option.startswith(HOW)]:
        raise UserError(
            f"{others[0]} would make other runs than the board's; what may be handed on is how they are run, such as "
            "hydra/launcher=joblib or logger=none."
        )
    methods = [entries()[name] for name in some(args.methods, list(entries()), "METHODS")]
    jobs = {
        "board": lambda: board(methods, rewards, blocks, MADE, RUNS),
        "tune": lambda: tuning(methods, rewards),
        "anew": lambda: board(methods, rewards, blocks, ANEW, None),
        "check": lambda: checks(rewards, blocks, args.other_gold),
    }[args.what]()
    return [job.line(options) for job in jobs]


def entered(words: Sequence[str]) -> Entry:
    """A method of somebody else's: a name, and what it asks for. Raises UserError on a name that is taken, or none."""
    name, *overrides = words or [""]
    if not name.isidentifier() or name in entries():
        raise UserError(
            f"enter {name}: give your method a name of its own, of letters, digits and _, then its overrides, such as "
            "my_method algorithm=my_method."
        )
    return Entry(name, name, "", "entered", "", tuple(overrides))


if __name__ == "__main__":
    main()
