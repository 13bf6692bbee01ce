"""Weights side by side: a row for each checkpoint of a series, or each degree of one, and which one to ship."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from src.metrics.watching import FELL
from src.report.runs import Row, Run
from src.report.watching import rose, shipment

MARK = "<- kept"
UNKNOWN = "-"


Interval = tuple[float, float]  # 95%, over prompts


@dataclass(frozen=True)
class Weighed:
    """One evaluation in figures; nan where it has none. Gains are in base sd."""

    name: str  # of the checkpoint, or the degree
    trained: float  # gain of the trained reward
    others: float  # mean gain of the other rewards; of all, where nobody knows which was trained on
    judge: float
    kl: float  # from the base, nats a trajectory
    diversity: float  # Vendi score within prompts
    kept: bool  # whether the watch would ship it
    trained_interval: Interval
    judge_interval: Interval
    held_out: float  # the judge's gain on held-out prompts
    held_out_interval: Interval


def weighed(run: Run) -> list[Weighed]:
    """The base, then every evaluation of the run, in its order."""
    told = shipment(run)
    rows = []
    for k, row in enumerate(run.evaluations):
        gains = [row[key] for name in run.others if (key := f"eval/{name}/gain") in row]
        rows.append(
            Weighed(
                name="the base" if k == 0 else run.told(k).removeprefix("at "),
                trained=row.get(f"eval/{run.trained}/gain", math.nan),
                others=sum(gains) / len(gains) if gains else math.nan,
                judge=row.get(f"eval/{run.judge}/gain", math.nan),
                kl=row.get("kl/trajectory", math.nan),
                diversity=row.get("pictures/vendi", math.nan),
                kept=told is not None and told.index == k,
                trained_interval=_interval(row, run.trained),
                judge_interval=_interval(row, run.judge),
                held_out=row.get(f"held_out/{run.judge}/gain", math.nan),
                held_out_interval=_interval(row, run.judge, "held_out"),
            )
        )
    return rows


def _interval(row: Row, reward: str | None, of: str = "eval") -> Interval:
    return row.get(f"{of}/{reward}/gain_low", math.nan), row.get(f"{of}/{reward}/gain_high", math.nan)


def columns_of(run: Run, rows: Sequence[Weighed]) -> dict[str, list[str]]:
    """The table's columns by title, those left out that no row has a figure for."""
    cells = {
        f"{run.trained} (trained)": [_gain(row.trained, row.trained_interval) for row in rows],
        "mean of the others" if run.trained else "mean of the rewards": [_told(row.others, "{:+.2f}") for row in rows],
        run.judge or "": [_gain(row.judge, row.judge_interval) for row in rows],
        f"{run.judge}, held-out": [_gain(row.held_out, row.held_out_interval) for row in rows],
        "KL [nats]": [_told(row.kl, "{:,.1f}") for row in rows],
        "Vendi score": [_told(row.diversity, "{:.2f}") for row in rows],
    }
    cells = {title: told for title, told in cells.items() if set(told) != {UNKNOWN}}
    marks = {"": [MARK if row.kept else "" for row in rows]} if any(row.kept for row in rows) else {}
    return {"weights": [row.name for row in rows], **cells, **marks}


def _told(value: float, style: str) -> str:
    return UNKNOWN if math.isnan(value) else style.format(value)


def _gain(value: float, interval: Interval) -> str:
    """With its interval, which the base has none of."""
    told = _told(value, "{:+.2f}")
    low, high = interval
    return told if math.isnan(low) or low == high else f"{told} [{low:+.2f}, {high:+.2f}]"


def series_table(run: Run) -> Table:
    """For the screen."""
    columns = columns_of(run, weighed(run))
    table = Table(title="gains over the base [base sd] with 95% intervals, KL from the base, diversity within prompts")
    for title in columns:
        table.add_column(title, justify="left" if title in ("weights", "") else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def series_csv(run: Run) -> str:
    """The same in full precision; an empty cell is what is not known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    three = [f"{name}_gain{part}" for name in ("trained", "judge", "judge_held_out") for part in ("", "_low", "_high")]
    writer.writerow(["weights", *three[:3], "others_gain", *three[3:], "kl", "vendi", "kept"])
    for row in weighed(run):
        judge = (row.judge, *row.judge_interval, row.held_out, *row.held_out_interval)
        values = (row.trained, *row.trained_interval, row.others, *judge, row.kl, row.diversity)
        writer.writerow([row.name, *("" if math.isnan(value) else f"{value:.6g}" for value in values), int(row.kept)])
    return buffer.getvalue()


def never_rose(run: Run) -> str:
    """A doubt, where the trained reward is nowhere above the base's, its whole 95% interval; else empty."""
    if run.trained is None or rose(run):
        return ""
    return (
        f"{run.trained} is nowhere above the base's: were these weights trained on this suite's {run.trained}? "
        "If on a model of your own, add it under another name (docs/evaluate.md)."
    )


def verdict(run: Run) -> str:
    """What to ship, in one sentence; empty of a run whose watch cannot tell, or has nothing to add to its curves."""
    told = shipment(run)
    if told is None or run.is_control:
        return ""
    of_others = run.config.get("task") == "evaluate"
    if of_others and (doubt := never_rose(run)):
        return f"Ship the base: {doubt}"
    if told.index == 0 and told.collapsed:
        return f"{FELL.capitalize()}: ship the base."
    if not of_others:
        return ""
    return f"The watch would ship {weighed(run)[told.index].name}."
