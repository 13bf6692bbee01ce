"""The leaderboard from its kept runs: `python -m experiments.leaderboard` writes results.csv, tables.md and curves.png.

With --anew it holds the runs of multirun/leaderboard_anew (run.sh anew) against those that are kept.
"""

import argparse
from pathlib import Path

from experiments.leaderboard.entries import CHECK, HERE, MADE, RUNS, entries
from experiments.leaderboard.merit import as_entered
from experiments.leaderboard.plan import ANEW, CHECKED
from experiments.leaderboard.tables import Runs, agreement, independent_check, rows_of, tables_of, with_base
from src.errors import UserError, told_in_one_sentence
from src.report.kept import ENDING, restore
from src.report.runs import read_run
from src.report.study import as_markdown, write_tables
from src.report.study_plots import draw_families


def kept_runs(kept: Path, made: Path) -> Runs:
    """Kept runs by method, in the order of the entries, then of names; their folders are made where they are not there.

    Raises UserError where there is none.
    """
    there = [folder.name for folder in sorted(kept.glob("*/")) if any(folder.glob(f"*{ENDING}"))]
    found: Runs = {}
    for name in sorted(there, key=lambda name: [*entries(), name].index(name)):
        restore(kept / name, made / name)
        files = sorted((kept / name).glob(f"*{ENDING}"))
        runs = [read_run(made / name / file.name.removesuffix(ENDING)) for file in files]
        found[name] = [run for run in runs if run is not None]
    if not found:
        raise UserError("the leaderboard has no run yet: experiments/leaderboard/run.sh makes them.")
    return found


def made_anew(folder: Path) -> Runs:
    """Finished runs below it, by method."""
    found: Runs = {}
    for summary in sorted(folder.glob("*/*/summary.json")):
        run = read_run(summary.parent)
        found.setdefault(summary.parent.parent.name, []).extend([run] if run else [])
    return found


def by_family(runs: Runs) -> dict[str, Runs]:
    """Runs as the board looks at them, by the panel that they are drawn in, and by method."""
    found: dict[str, Runs] = {}
    for name, of in runs.items():
        family = entries()[name].family if name in entries() else "entered"
        found.setdefault(family, {})[name] = [as_entered(run) for run in of]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.leaderboard", description=__doc__)
    parser.add_argument("--anew", action="store_true", help="hold runs that were made anew against the kept ones")
    args = parser.parse_args()
    with told_in_one_sentence():
        runs = kept_runs(RUNS, MADE)
        if args.anew:
            found = agreement(runs, made_anew(ANEW))
            if not len(found):
                raise UserError("no kept run has been made anew: experiments/leaderboard/run.sh anew does it.")
            print(as_markdown(found))
            return
        runs = with_base(runs)
        found = rows_of(runs)
        tables = tables_of(found)
        if any(CHECK.glob(f"*/*{ENDING}")):
            tables["Independent check, on the same fresh pictures"] = independent_check(kept_runs(CHECK, CHECKED))
        shown = {title: part.rename(columns={"arm": "method"}) for title, part in tables.items()}
        write_tables(HERE, found.rename(columns={"arm": "method"}), shown)
        draw_families(by_family(runs), HERE / "curves.png")


if __name__ == "__main__":
    main()
