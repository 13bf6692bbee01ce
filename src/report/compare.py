"""The arms of a sweep held against each other, seed by seed: `python -m src.report.compare FOLDER --against ARM`.

Writes results.csv (a row a run), tables.md and curves.png into the folder. Needs the extra `studies`.
"""

import argparse
from collections.abc import Sequence

import pandas as pd

from src.errors import UserError, told_in_one_sentence
from src.files import user_path
from src.report.figures import treatments
from src.report.runs import Run, find_runs
from src.report.study import against, compare, means, only_finished, table, write_tables
from src.report.study_plots import draw_curves, proxy_and_gold
from src.screen import survive_its_end

AT_THE_END = ["proxy_end", "gold_end", "held_out_gold_end", "cross_end", "top1_end", "gold_peak", "overoptimization"]
CRITIC = ["explained_variance", "dormant", "recovery"]


def arms_of(paths: Sequence[str]) -> dict[str, list[Run]]:
    """Finished runs of fine-tuning, and evaluations of others' checkpoints, by what but the seed sets them apart.

    Raises UserError where that is nothing.
    """
    arms = treatments([run for run in only_finished(find_runs(paths)) if not run.is_best_of_n])
    if len(arms) < 2:
        raise UserError(
            f"{' '.join(paths)}: the finished runs differ in their seed only; "
            "name folders with runs of two settings or more."
        )
    trained = sorted({run.trained for runs in arms.values() for run in runs})
    if len(trained) > 1:
        raise UserError(f"{' '.join(paths)}: these runs train on {', '.join(trained)}; compare those of one reward.")
    return arms


def tables_of(found: pd.DataFrame, levels: Sequence[float], baseline: str | None) -> dict[str, pd.DataFrame]:
    """Means of each arm and, of a baseline, differences from it; outcomes that no run has are left out."""
    at_equal_reward = [f"{name}_at_{level:g}" for level in levels for name in ("gold", "cross")]
    families = {"At equal trained reward": at_equal_reward, "Over the whole run": AT_THE_END, "The critic": CRITIC}
    known = {title: [c for c in columns if found[c].notna().any()] for title, columns in families.items()}
    tables = {"Means over seeds": means(found, [column for columns in known.values() for column in columns])}
    if baseline is not None:
        contrasts = against(found, baseline)
        tables |= {f"{title}, against {baseline}": compare(found, known[title], contrasts) for title in known}
    return tables


def main() -> None:
    survive_its_end()
    parser = argparse.ArgumentParser(prog="python -m src.report.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="folders with runs below them, such as a sweep's")
    parser.add_argument("--against", metavar="ARM", help="the arm that the others are held against")
    parser.add_argument(
        "--at", nargs="+", type=float, default=[1.0], help="gains of the trained reward to read gold at, in base sd"
    )
    args = parser.parse_args()
    with told_in_one_sentence():
        arms = arms_of(args.runs)
        if args.against is not None and args.against not in arms:
            raise UserError(f"--against={args.against} is none of the arms: {'; '.join(arms)}.")
        rows = [table(runs, lambda _, name=name: name, args.at) for name, runs in arms.items()]  # type: ignore[misc]
        folder = user_path(args.runs[0])
        found = pd.concat(rows, ignore_index=True)
        write_tables(folder, found, tables_of(found, args.at, args.against))
        trained = next(iter(arms.values()))[0].trained
        panels = proxy_and_gold(trained)
        if (
            len({run.layout for runs in arms.values() for run in runs}) > 1
        ):  # of others' checkpoints queries are unknown
            panels = {title: keys for title, keys in panels.items() if keys[0] != "reward_queries"}
        draw_curves(arms, panels, folder / "curves.png")
    told = "" if args.against else f"; hold them against one by --against ARM: {'; '.join(arms)}"
    print(f"{folder}: results.csv, tables.md, curves.png{told}")


if __name__ == "__main__":
    main()
