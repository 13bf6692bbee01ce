"""A study in figures: one row a run, and arms compared seed by seed.

Needs the extra `studies` (pandas, scipy).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.errors import UserError
from src.files import write_text
from src.report.figures import JUDGE
from src.report.kept import restore
from src.report.runs import Run, differences, find_runs, flat


def crossing(x: Sequence[float | int], y: Sequence[float | int], level: float | int) -> float:
    """y where x first reaches `level`, linear between points; nan where it never does."""
    for k, value in enumerate(x):
        if value >= level:
            if k == 0:
                return float(y[0])
            share = (level - x[k - 1]) / (value - x[k - 1])
            return float(y[k - 1] + share * (y[k] - y[k - 1]))
    return float("nan")


def outcomes(run: Run, levels: Sequence[float] = (), at_kl: Sequence[float] = ()) -> dict[str, float | int | None]:
    """What became of a run; rewards in base sd, on the training prompts unless they say otherwise.

    For each of the levels, `gold_at_L`, `cross_at_L` and `kl_at_L` are read where the trained reward's gain first
    reaches L, linear between evaluations; nan where it never does; for each of `at_kl`, in nats a trajectory,
    `gold_at_kl_L`, `cross_at_kl_L` and `proxy_at_kl_L` where the KL from the base first reaches L, linear in its root.
    What the critic says is a mean of the later half.
    """
    gold, proxy = run.series(f"eval/{JUDGE}/gain"), run.series(f"eval/{run.trained}/gain")
    cross = [float(np.mean([row[f"eval/{name}/gain"] for name in run.others])) for row in run.evaluations]
    peak = int(np.argmax(gold))
    last = run.evaluations[-1]
    later_half = run.iterations[len(run.iterations) // 2 :]
    found: dict[str, float | int | None] = {
        "reward_queries": last["reward_queries"],
        "optimizer_steps": _first(run.iterations[-1:], "optimizer_steps"),
        "proxy_end": proxy[-1],
        "gold_end": gold[-1],
        "gold_peak": gold[peak],
        "gold_peak_queries": run.queries[peak],
        "overoptimization": max(gold) - gold[-1],
        "held_out_gold_end": last.get(f"held_out/{JUDGE}/gain"),
        "cross_end": cross[-1],
        "top1_end": last.get("eval/classifier_top1/mean"),
        "kl_end": last.get("kl/trajectory", float("nan")),
        "vendi_end": last["pictures/vendi"],
        "explained_variance": _mean(later_half, "critic/explained_variance"),
        "dormant_first": _first(run.iterations, "neurons/dormant_0"),
        "dormant": _mean(later_half, "neurons/dormant_0"),
        "dormant_0.025": _mean(later_half, "neurons/dormant_0.025"),
        "dormant_0.1": _mean(later_half, "neurons/dormant_0.1"),
        "reset_share": _mean([row for row in run.iterations if row.get("reset/share")], "reset/share"),
    } | recovery(run)
    columns = {"gold": gold, "cross": cross, "kl": run.series("kl/trajectory")}
    for level in levels:
        found |= {f"{name}_at_{level:g}": crossing(proxy, column, level) for name, column in columns.items()}
    distance, columns = run.series("kl/sqrt"), {"gold": gold, "cross": cross, "proxy": proxy}
    for level in at_kl:
        found |= {f"{k}_at_kl_{level:g}": crossing(distance, column, level**0.5) for k, column in columns.items()}
    return found


def recovery(run: Run) -> dict[str, float]:
    """What resets cost the critic's explained variance, in the mean over resets; of three iterations before each.

    `reset_dip`: how far it is below that in the iteration after; `recovery`: iterations until it is back there, or
    until the next reset is due or the run ends if it is not before; `recovered`: share of the resets after which it is.
    A reset that found nobody to take counts for nothing. Of a run without resets the same at the iterations where it
    might have had them, to hold the others against.
    """
    rows = [row for row in run.iterations if "critic/explained_variance" in row]
    explained = [row["critic/explained_variance"] for row in rows]
    if not rows:
        return dict.fromkeys(("reset_dip", "recovery", "recovered"), float("nan"))
    every = run.config["reset"].get("every", 10)
    due = [k for k in range(every - 1, len(rows), every) if 2 <= k < len(rows) - 1]
    resets = any(row.get("reset/share") for row in rows)
    found = []
    for start, end in pairwise([*due, len(rows) - 1]):
        if resets and not rows[start].get("reset/share"):
            continue
        before, after = float(np.mean(explained[start - 2 : start + 1])), explained[start + 1 : end + 1]
        back = next((k for k, value in enumerate(after, 1) if value >= before), None)
        found.append((before - after[0], back or len(after), back is not None))
    means = np.mean(found, axis=0) if found else [float("nan")] * 3
    return {name: float(value) for name, value in zip(("reset_dip", "recovery", "recovered"), means, strict=True)}


def _first(rows: list[dict[str, Any]], key: str) -> float | int | None:
    """None where weights of others were evaluated, of which no iteration is known."""
    return rows[0].get(key) if rows else None


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return float(np.mean(values)) if values else float("nan")


def study_runs(study: Path, given: Sequence[str] = ()) -> list[Run]:
    """The finished runs of these folders.

    If none is given, those of multirun/STUDY beside experiments/, where the study's kept runs are restored first.
    Raises UserError where there is none.
    """
    if not given:
        own = study.parent.parent / "multirun" / study.name
        restore(study / "runs", own)
        if not own.is_dir():
            raise UserError(f"{study.name} has no run yet: experiments/{study.name}/run.sh makes them.")
        given = [str(own)]
    return only_finished(find_runs(given))


def shared_tdpo(study: Path) -> list[Run]:
    """The arm `none` of this study: TDPO as it is, which other studies hold theirs against."""
    return [run for run in study_runs(study) if run.config["reset"]["_target_"].endswith(".NoReset")]


def by_arm(runs: Iterable[Run], arm: Callable[[dict[str, Any]], str]) -> dict[str, list[Run]]:
    """Runs by the name that `arm` gives their flat configuration, arms in alphabetical order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(arm(flat(run.config)), []).append(run)
    return dict(sorted(found.items()))


def table(
    runs: Iterable[Run],
    arm: Callable[[dict[str, Any]], str],
    levels: Sequence[float] = (),
    row_of: Callable[..., dict[str, Any]] = outcomes,
    varied: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row a run: its arm, as `arm` names it from the flat configuration, its seed, commit, and outcomes.

    Raises UserError where an arm has two runs of one seed, a run stopped before its last evaluation, or runs differ in
    anything but their seed and the keys that begin with one of `varied`.
    """
    runs = list(runs)
    if varied is not None:
        _require_one_setting(runs, ("seed", *varied))
    rows = []
    for run in runs:
        config = flat(run.config)
        if not run.finished:
            raise UserError(f"{run.folder} is not finished; run the study's command again, which goes on with it.")
        rows.append({"arm": arm(config), "seed": config["seed"], "commit": run.commit, **row_of(run, levels)})
    found = pd.DataFrame(rows).sort_values(["arm", "seed"], kind="stable").reset_index(drop=True)
    twice = found[found.duplicated(["arm", "seed"])]
    if len(twice):
        arm_of, seed = twice.arm.iloc[0], twice.seed.iloc[0]
        raise UserError(f"arm {arm_of} has two runs of seed {seed}; name the study's folder only.")
    return found


def _require_one_setting(runs: list[Run], varied: Sequence[str]) -> None:
    _refuse(runs, [key for key in differences(runs) if not key.startswith(tuple(varied))])


def require_same(runs: list[Run], shared: Sequence[str], but: Sequence[str] = ()) -> None:
    """Raises UserError where runs differ in a key that begins with one of `shared`, unless it is one of `but`."""
    _refuse(runs, [key for key in differences(runs, tuple(shared)) if key not in but])


def _refuse(runs: list[Run], stray: list[str]) -> None:
    if stray:
        values = {str(run.value(stray[0])): run.folder for run in runs}
        told = ", ".join(f"{value} in {folder}" for value, folder in list(values.items())[:2])
        raise UserError(f"these runs are not of one study: {stray[0]} is {told}; remove those of another setting.")


def only_finished(runs: Iterable[Run]) -> list[Run]:
    """Tells which runs are left out. Raises UserError where none is finished."""
    runs = list(runs)
    for run in runs:
        if not run.finished:
            print(f"left out, for it is not finished: {run.folder}")
    done = [run for run in runs if run.finished]
    if not done:
        raise UserError("none of these runs is finished; run the study's command again, which goes on with them.")
    return done


def means(found: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean over seeds of each arm, with the half-width of its 95% t interval as `<column> +-`."""
    rows = []
    for arm, part in found.groupby("arm", sort=False):
        row: dict[str, Any] = {"arm": arm, "seeds": len(part)}
        for column in columns:
            values = part[column].dropna()
            row[column] = values.mean()
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
            row[f"{column} +-"] = half
            if found[column].isna().any():
                row[f"runs with {column}"] = len(values)  # the others never got there
        rows.append(row)
    return pd.DataFrame(rows)


Contrast = tuple[str, str]  # an arm, and the arm that it is held against


def against(found: pd.DataFrame, baseline: str) -> list[Contrast]:
    """Every other arm against this one."""
    return [(arm, baseline) for arm in dict.fromkeys(found.arm) if arm != baseline]


def compare(
    found: pd.DataFrame, columns: list[str], contrasts: Sequence[Contrast], margin: float | None = None
) -> pd.DataFrame:
    """Arms held against each other, paired by seed: difference, 95% t interval, effect size, p, and a verdict.

    `d` is Cohen's d of paired differences (mean over standard deviation). `p` is of the two-sided paired t test,
    `p_adjusted` that after Benjamini and Hochberg's correction over all rows of this table, which should hold one
    family of questions. Verdict: `differs` (p_adjusted < 0.05) and `within margin` (the interval, which is not
    corrected, lies inside +-margin), one, both or neither, which is `undecided`. Pairs of which one is missing are left
    out, such as those where one never reached the level that an outcome is read at. Raises UserError on an unknown arm.
    """
    for name in (name for pair in contrasts for name in pair):
        if name not in set(found.arm):
            raise UserError(f"{name} is none of the arms {', '.join(dict.fromkeys(found.arm))}.")
    rows = []
    for column in columns:
        wide = found.pivot(index="seed", columns="arm", values=column)
        for arm, baseline in contrasts:
            pairs = wide[[arm, baseline]].dropna()
            row = {"outcome": column, "arm": arm, "against": baseline, "pairs": len(pairs)}
            rows.append(row | paired(pairs[arm] - pairs[baseline]))
    return judged(pd.DataFrame(rows), margin)


def combined(found: pd.DataFrame, columns: list[str], named: dict[str, dict[str, int]], margin: float | None = None):
    """Sums of arms with weights, such as an interaction, seed by seed; otherwise as `compare`.

    Those of which an arm is missing are left out.
    """
    rows = []
    for column in columns:
        wide = found.pivot(index="seed", columns="arm", values=column)
        for name, weights in named.items():
            if set(weights) <= set(wide):
                total = sum(weight * wide[arm] for arm, weight in weights.items()).dropna()
                rows.append({"outcome": column, "of": name, "pairs": len(total), **paired(total)})
    return judged(pd.DataFrame(rows), margin)


def slopes(found: pd.DataFrame, columns: list[str], on: str) -> pd.DataFrame:
    """By how much a column moves with another over the arms: a least-squares slope for each seed, then as `compare`.

    Runs that lack either are left out, such as those that never reached the level that an outcome is read at.
    """
    rows = []
    for column in columns:
        known = [part for _, part in found[["seed", on, column]].dropna().groupby("seed") if part[on].nunique() > 1]
        each = [np.polyfit(part[on], part[column], 1)[0] for part in known]
        rows.append({"outcome": column, "per": on, "pairs": len(each), **paired(pd.Series(each, dtype=float))})
    return judged(pd.DataFrame(rows), None)


def single(found: pd.DataFrame, columns: list[str], above: float = 0.0) -> pd.DataFrame:
    """Each arm's own mean with its interval, tested against `above` from both sides."""
    rows = []
    for column in columns:
        for arm, part in found.groupby("arm", sort=False):
            values = part[column].dropna()
            row = {"outcome": column, "arm": arm, "runs": len(values), "against": above}
            rows.append(row | paired(values - above))
    return judged(pd.DataFrame(rows), None)


def paired(difference: pd.Series) -> dict[str, float]:
    """Mean, 95% t interval, Cohen's d and p of differences; nan for what one pair cannot tell."""
    unknown = dict.fromkeys(("low", "high", "d", "p"), float("nan"))
    if len(difference) < 2:
        return {"difference": difference.mean()} | unknown
    mean, spread = difference.mean(), difference.std()
    if spread == 0:  # runs that do the same, such as two that are shipped before they part
        return {"difference": mean, "low": mean, "high": mean, "d": float("nan"), "p": 0.0 if mean else float("nan")}
    test = stats.ttest_1samp(difference, 0.0)
    low, high = test.confidence_interval(0.95)
    return {"difference": mean, "low": low, "high": high, "d": mean / spread, "p": test.pvalue}


def validity(found: pd.DataFrame, arm: str, column: str, above: float) -> pd.DataFrame:
    """Whether the mean of an arm is above what the study needs to say anything."""
    values = found[found.arm == arm][column].dropna()
    met = "met" if len(values) and values.mean() > above else "not met"
    low, high = (values.min(), values.max()) if len(values) else (float("nan"),) * 2
    row = {"arm": arm, "must be above": above, column: values.mean(), "lowest": low, "highest": high, "condition": met}
    return pd.DataFrame([row])


def judged(rows: pd.DataFrame, margin: float | None) -> pd.DataFrame:
    """The rows with p corrected over all of them, and a verdict."""
    if not len(rows):
        return rows
    known = rows.p.notna()
    rows["p_adjusted"] = float("nan")
    if known.any():
        rows.loc[known, "p_adjusted"] = stats.false_discovery_control(rows.p[known])
    inside = (rows.low > -(margin or 0)) & (rows.high < (margin or 0))
    words = {"differs": rows.p_adjusted < 0.05, "within margin": inside}
    told = [[word for word, holds in words.items() if holds[k]] for k in rows.index]
    rows["verdict"] = [", ".join(each) or "undecided" for each in told]
    return rows


def write_tables(folder: Path, found: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    """results.csv, a row a run, and tables.md, the tables that have rows under their titles; prints the latter."""
    write_text(folder / "results.csv", found.to_csv(index=False, float_format="%.5g"))
    parts = [f"## {title}\n\n{as_markdown(part)}\n" for title, part in tables.items() if len(part)]
    write_text(folder / "tables.md", "\n".join(parts))
    print("\n".join(parts))


def as_markdown(found: pd.DataFrame) -> str:
    """A table for a README: figures to three digits, half-widths beside their means."""
    halves = [column for column in found if column.endswith(" +-")]
    shown = found.drop(columns=halves).map(_figure).astype(object)
    for column in halves:
        name = column.removesuffix(" +-")
        pairs = zip(shown[name], found[column], strict=True)
        shown[name] = [mean if np.isnan(half) else f"{mean} ± {half:.2g}" for mean, half in pairs]
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
