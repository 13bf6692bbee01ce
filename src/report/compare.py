"""The arms of a sweep held against each other, seed by seed: `python -m src.report.compare FOLDER --against ARM`.

Writes results.csv (a row a run), tables.md and curves.png into the folder; controls without training are drawn beside
the arms. Needs the extra `studies`.
"""

import argparse
import re
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from src.errors import UserError, told_in_one_sentence
from src.files import user_path
from src.report.figures import treatments
from src.report.runs import CHOICES, Run, find_runs, lay_out
from src.report.study import against, compare, means, only_finished, outcomes, table, write_tables
from src.report.study_plots import draw_curves, proxy_and_gold
from src.screen import survive_its_end

AT_THE_END = ["proxy_end", "gold_end", "held_out_gold_end", "cross_end", "top1_end", "gold_peak", "overoptimization"]
CRITIC = ["explained_variance", "dormant", "recovery"]


def arms_of(runs: Sequence[Run], where: str) -> tuple[dict[str, list[Run]], dict[str, list[Run]]]:
    """Runs of fine-tuning, and evaluations of others' checkpoints, by what but the seed sets them apart; and controls.

    Raises UserError where there is nothing to compare.
    """
    controls = treatments([run for run in runs if run.is_control])
    arms = treatments([run for run in runs if not run.is_control])
    if not arms:
        raise UserError(f"{where}: these are controls without training; python -m src.report draws them on one page.")
    if len(arms) < 2 and not controls:
        raise UserError(
            f"{where}: the finished runs differ in their seed only; name folders with runs of two settings or more."
        )
    trained = {run.trained for part in (arms, controls) for runs in part.values() for run in runs}
    if None in trained:
        raise UserError(
            f"{where}: what some of these weights were trained on is not known, and arms are compared at equal trained "
            "reward: evaluate them with train_reward=NAME."
        )
    if len(trained) > 1:
        known = ", ".join(sorted(map(str, trained)))
        raise UserError(f"{where}: these runs train on {known}; compare those of one reward.")
    return arms, controls


def named(given: str, arms: Sequence[str] | dict[str, list[Run]]) -> str:
    """The arm of this name, or the one whose name has these parts, such as reset=none. Raises UserError otherwise."""
    parts = {re.sub(r"^[\w.]*\.(?=\w+=)", "", part.strip()) for part in given.split(",")}  # x.beta=0 is beta=0
    found = [given] if given in arms else [arm for arm in arms if parts <= set(arm.split(", "))]
    if len(found) != 1:
        several = "fits several of" if found else "is none of"
        raise UserError(f"--against={given} {several} the arms: {'; '.join(found or arms)}.")
    return found[0]


def unreached(runs: Sequence[Run], levels: Sequence[float], at_kl: Sequence[float]) -> list[str]:
    """Of each level that no run's trained reward, or KL, reaches, that it is so, and how high they came."""
    highest = max(max(run.series(f"eval/{run.trained}/gain")) for run in runs)
    farthest = max(np.nanmax(run.series("kl/trajectory")) for run in runs)
    told = [(f"{level:+g}", f"{highest:+.2f}") for level in levels if highest < level]
    told += [(f"{level:g} nats", f"{farthest:.0f}") for level in at_kl if not farthest >= level]
    return [f"no run reaches {level}: nothing to read there (highest: {most})" for level, most in told]


def tables_of(
    found: pd.DataFrame, levels: Sequence[float], at_kl: Sequence[float], baseline: str | None
) -> dict[str, pd.DataFrame]:
    """Means of each arm and, of a baseline, differences from it; outcomes that no run has are left out."""
    families = {
        "At equal trained reward": [f"{name}_at_{level:g}" for level in levels for name in ("gold", "cross")],
        "At equal KL": [f"{name}_at_kl_{level:g}" for level in at_kl for name in ("proxy", "gold", "cross")],
        "Over the whole run": AT_THE_END,
        "The critic": CRITIC,
    }
    known = {title: [c for c in columns if found[c].notna().any()] for title, columns in families.items()}
    shown = [column for columns in known.values() for column in columns]
    shown += ["reset_share"] if found["reset_share"].notna().any() else []  # no outcome, and what arms may differ by
    tables = {"Means over seeds": means(found, shown)}
    if baseline is not None:
        contrasts = against(found, baseline)
        tables |= {f"{title}, against {baseline}": compare(found, known[title], contrasts) for title in known}
    return tables


def main() -> None:
    """Reads the runs that the command line names, and writes tables and curves beside them."""
    survive_its_end()
    parser = argparse.ArgumentParser(prog="python -m src.report.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="folders with runs below them, such as a sweep's")
    parser.add_argument("--against", metavar="ARM", help="the arm that the others are held against")
    parser.add_argument(
        "--at", nargs="+", type=float, default=[1.0], help="gains of the trained reward to read gold at, in base sd"
    )
    parser.add_argument(
        "--at-kl", nargs="+", type=float, default=[], help="KL from the base to read rewards at, in nats a trajectory"
    )
    parser.add_argument("--x", choices=list(CHOICES), default="reward_queries", help="what curves are drawn over")
    args = parser.parse_args()
    with told_in_one_sentence():
        arms, controls = arms_of(only_finished(find_runs(args.runs)), " ".join(args.runs))
        args.against = args.against and named(args.against, arms)
        row_of = partial(outcomes, at_kl=args.at_kl)
        rows = [table(runs, lambda _, name=name: name, args.at, row_of) for name, runs in arms.items()]  # type: ignore[misc]
        folder = user_path(args.runs[0])
        found = pd.concat(rows, ignore_index=True)
        write_tables(folder, found, tables_of(found, args.at, args.at_kl, args.against))
        trained = str(next(iter(arms.values()))[0].trained)
        panels, drawn = proxy_and_gold(trained, args.x), [run for runs in arms.values() for run in runs]
        for told in unreached(drawn, args.at, args.at_kl):
            print(told)
        if args.x != "reward_queries":
            lay_out(drawn, args.x)
        elif len({run.layout for run in drawn}) > 1:  # of others' checkpoints queries are unknown
            panels = {title: keys for title, keys in panels.items() if keys[0] != "reward_queries"}
        draw_curves(arms, panels, folder / "curves.png", controls=controls)
    told = "" if args.against else f"; hold them against one by --against ARM: {'; '.join(arms)}"
    print(f"{folder}: results.csv, tables.md, curves.png{told}")


if __name__ == "__main__":
    main()
