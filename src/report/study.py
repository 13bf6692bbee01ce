"""A study in figures: one row a run, and arms compared seed by seed.

Needs the extra `studies` (pandas, scipy).
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.errors import UserError
from src.report.figures import JUDGE
from src.report.runs import Run, flat


def crossing(x: Sequence[float | int], y: Sequence[float | int], level: float | int) -> float:
    """y where x first reaches `level`, linear between points; nan where it never does."""
    for k, value in enumerate(x):
        if value >= level:
            if k == 0:
                return float(y[0])
            share = (level - x[k - 1]) / (value - x[k - 1])
            return float(y[k - 1] + share * (y[k] - y[k - 1]))
    return float("nan")


def outcomes(
    run: Run, proxy_level: float | int | None = None, steps_level: float | int | None = None
) -> dict[str, float | int | None]:
    """What became of a run; rewards in base sd, on the training prompts unless they say otherwise.

    `gold_at_proxy`, `cross_at_proxy` and `kl_at_proxy` are read where the trained reward's gain first reaches
    `proxy_level`, `gold_at_steps` and `proxy_at_steps` after `steps_level` optimizer steps; linear between evaluations.
    """
    gold, proxy = run.series(f"eval/{JUDGE}/gain"), run.series(f"eval/{run.trained}/gain")
    names = [name for name in run.config["suite"]["rewards"] if name != run.trained]
    cross = [float(np.mean([row[f"eval/{name}/gain"] for name in names])) for row in run.evaluations]
    peak = int(np.argmax(gold))
    last = run.evaluations[-1]
    later_half = run.iterations[len(run.iterations) // 2 :]
    found: dict[str, float | int | None] = {
        "reward_queries": last["reward_queries"],
        "optimizer_steps": run.iterations[-1]["optimizer_steps"],
        "proxy_end": proxy[-1],
        "gold_end": gold[-1],
        "gold_peak": gold[peak],
        "gold_peak_queries": run.queries[peak],
        "overoptimization": max(gold) - gold[-1],
        "held_out_gold_end": last.get(f"held_out/{JUDGE}/gain"),
        "cross_end": cross[-1],
        "top1_end": last.get("eval/classifier_top1/mean"),
        "kl_end": last["kl/trajectory"],
        "vendi_end": last["pictures/vendi"],
        "explained_variance": _mean(later_half, "critic/explained_variance"),
        "dormant": _mean(later_half, "neurons/dormant_0"),
        "dormant_0.025": _mean(later_half, "neurons/dormant_0.025"),
        "dormant_0.1": _mean(later_half, "neurons/dormant_0.1"),
        "reset_share": _mean([row for row in run.iterations if row.get("reset/share")], "reset/share"),
    }
    if proxy_level is not None:
        columns = {"gold": gold, "cross": cross, "kl": run.series("kl/trajectory")}
        found |= {f"{name}_at_proxy": crossing(proxy, column, proxy_level) for name, column in columns.items()}
    if steps_level is not None:
        steps = steps_at_evaluations(run)
        columns = {"gold": gold, "proxy": proxy}
        found |= {f"{name}_at_steps": crossing(steps, column, steps_level) for name, column in columns.items()}
    return found


def steps_at_evaluations(run: Run) -> list[float]:
    """Optimizer steps of the policy done at each evaluation."""
    done = {row["iteration"]: row["optimizer_steps"] for row in run.iterations}
    return [float(done.get(row["iteration"], 0)) for row in run.evaluations]


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return float(np.mean(values)) if values else float("nan")


def by_arm(runs: Iterable[Run], arm: Callable[[dict[str, Any]], str]) -> dict[str, list[Run]]:
    """Runs by the name that `arm` gives their flat configuration, arms in alphabetical order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(arm(flat(run.config)), []).append(run)
    return dict(sorted(found.items()))


def table(
    runs: Iterable[Run],
    arm: Callable[[dict[str, Any]], str],
    proxy_level: float | int | None = None,
    steps_level: float | int | None = None,
) -> pd.DataFrame:
    """One row a run: its arm, as `arm` names it from the flat configuration, its seed, and its outcomes.

    Raises UserError where an arm has two runs of one seed, or a run stopped before its last evaluation.
    """
    rows = []
    for run in runs:
        config = flat(run.config)
        if not run.iterations or run.evaluations[-1]["iteration"] < config["iterations"]:
            raise UserError(f"{run.folder} is not finished; run the study's command again, which goes on with it.")
        rows.append({"arm": arm(config), "seed": config["seed"], **outcomes(run, proxy_level, steps_level)})
    found = pd.DataFrame(rows).sort_values(["arm", "seed"], kind="stable").reset_index(drop=True)
    twice = found[found.duplicated(["arm", "seed"])]
    if len(twice):
        arm_of, seed = twice.arm.iloc[0], twice.seed.iloc[0]
        raise UserError(f"arm {arm_of} has two runs of seed {seed}; name the study's folder only.")
    return found


def reached_by_all(runs: Iterable[Run]) -> float:
    """The highest gain of the trained reward that every run reaches."""
    return float(min(max(run.series(f"eval/{run.trained}/gain")) for run in runs))


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
        rows.append(row)
    return pd.DataFrame(rows)


def compare(found: pd.DataFrame, columns: list[str], baseline: str) -> pd.DataFrame:
    """Every arm against `baseline`, paired by seed: difference, 95% t interval, effect size, p.

    `d` is Cohen's d of paired differences (mean over standard deviation). `p` is of the two-sided paired t test,
    `p_adjusted` that after Benjamini and Hochberg's correction over all rows of this table. Pairs of which one is
    missing are left out. Raises UserError on an unknown baseline.
    """
    if baseline not in set(found.arm):
        raise UserError(f"baseline={baseline} is none of the arms {', '.join(dict.fromkeys(found.arm))}.")
    rows = []
    for column in columns:
        wide = found.pivot(index="seed", columns="arm", values=column)
        for arm in dict.fromkeys(found.arm):
            if arm == baseline:
                continue
            pairs = wide[[arm, baseline]].dropna()
            difference = pairs[arm] - pairs[baseline]
            row = {"outcome": column, "arm": arm, "pairs": len(pairs), "difference": difference.mean()}
            if len(pairs) > 1:
                test = stats.ttest_rel(pairs[arm], pairs[baseline])
                low, high = test.confidence_interval(0.95)
                row |= {"low": low, "high": high, "d": difference.mean() / difference.std(), "p": test.pvalue}
            rows.append(row)
    result = pd.DataFrame(rows)
    known = result.p.notna()
    result.loc[known, "p_adjusted"] = stats.false_discovery_control(result.p[known])
    return result


def write_tables(folder: Path, found: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    """results.csv, a row a run, and tables.md, the tables under their titles; prints the latter."""
    found.to_csv(folder / "results.csv", index=False, float_format="%.5g")
    parts = [f"## {title}\n\n{as_markdown(part)}\n" for title, part in tables.items()]
    (folder / "tables.md").write_text("\n".join(parts))
    print("\n".join(parts))


def as_markdown(found: pd.DataFrame) -> str:
    """A table for a README: figures to three digits, half-widths beside their means."""
    halves = [column for column in found if column.endswith(" +-")]
    shown = found.drop(columns=halves).map(_figure).astype(object)
    for column in halves:
        name = column.removesuffix(" +-")
        shown[name] = [f"{mean} ± {half:.2g}" for mean, half in zip(shown[name], found[column], strict=True)]
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
