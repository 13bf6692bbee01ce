"""Pictures with their scores: summed up, compared with their partners, and written as tables."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from src.errors import UserError, first_line
from src.metrics.intervals import Interval, bootstrap_mean, freedom_within, spread_within
from src.metrics.joint import joint_rates
from src.pictures import Picture

NO_SPREAD = 1e-6  # of a reward; below it are rounding errors only
SHOWN = 30  # prompts on the screen
GAIN = "gain [sd of --against]"  # of its pictures of one prompt, about their mean
ENOUGH = 10  # degrees of freedom of a standard deviation
ONE_PICTURE = "each prompt has one picture: the sd, and gains in it, are of the spread between prompts; take several."
FEW = "the sd within prompts, and gains in it, rest on {} pictures beyond the first of a prompt: take more."
ONE_PROMPT = "no interval: intervals are over prompts, and there is one."
ENDINGS = (".csv", ".parquet")

Scores = dict[str, Float[Tensor, " n"]]  # by reward; nan where it cannot score the prompt
Rows = list[dict[str, Any]]


@dataclass
class Scored:
    """Pictures with their scores, and, where they are compared, those of their partners."""

    pictures: list[Picture]
    scores: Scores
    rewards: list[str]  # which of the scores are no judge's
    partners: list[Picture] | None = None
    base: Scores | None = None  # of the partners

    def gains(self) -> Scores:
        """Of each picture over its partner, in standard deviations of the partners' pictures of a prompt.

        A reward in which the partners do not differ has none.
        """
        gains: Scores = {}
        for name, base in (self.base or {}).items():
            known = ~base.isnan()
            sd = spread_within(base[known].numpy(), self.prompts(known)) if known.any() else 0.0
            if sd > NO_SPREAD:
                gains[name] = (self.scores[name] - base) / sd
        return gains

    def joint(self) -> dict[str, float]:
        """Joint rates over the pictures that every reward can score; judges play no part."""
        if self.base is None or not self.rewards:
            return {}
        known = ~torch.stack([self.scores[name] for name in self.rewards]).isnan().any(0)
        if not known.any():
            return {}
        now, base = ({name: table[name][known] for name in self.rewards} for table in (self.scores, self.base))
        return joint_rates(now, base)

    def prompts(self, of: Tensor) -> list[str]:
        """The prompts of the pictures that a mask marks."""
        return [str(picture.prompt) for picture, chosen in zip(self.pictures, of.tolist(), strict=True) if chosen]

    def mean(self, values: Float[Tensor, " n"]) -> Interval | None:
        """Mean over prompts of what is known, with its 95% interval; None where nothing is."""
        known = ~values.isnan()
        return bootstrap_mean(values[known].numpy(), self.prompts(known)) if known.any() else None


def overall(found: Scored) -> Table:
    """A row for each reward."""
    compared = found.base is not None
    prompts = len({picture.prompt for picture in found.pictures})
    table = Table(title=f"{len(found.pictures):,} pictures, {prompts:,} prompts")
    against = ("against", GAIN, "95% interval", "win rate") if compared else ("95% interval",)
    for column in ("reward", "mean", "sd within prompts", *against):
        table.add_column(column, justify="right")
    gains = found.gains()
    for name, values in found.scores.items():
        known = ~values.isnan()
        mean = found.mean(values)
        if mean is None:
            table.add_row(name, "-", "it can score none of these prompts")
            continue
        cells = [f"{mean.mean:.3f}", f"{spread_within(values[known].numpy(), found.prompts(known)):.3f}"]
        if found.base is not None:
            cells += _compared(found, name, gains.get(name), prompts)
        else:
            cells.append(_interval(mean, "{:.3f}", prompts))
        table.add_row(name, *cells)
    return table


def _compared(found: Scored, name: str, gains: Tensor | None, prompts: int) -> list[str]:
    assert found.base is not None
    before, gain = found.mean(found.base[name]), None if gains is None else found.mean(gains)
    known = ~found.scores[name].isnan()
    now, base = found.scores[name][known], found.base[name][known]
    wins = ((now > base).float() + 0.5 * (now == base).float()).mean()
    told = ["-", "-"] if gain is None else [f"{gain.mean:+.2f}", _interval(gain, "{:+.2f}", prompts)]
    return ["-" if before is None else f"{before.mean:.3f}", *told, f"{wins:.2f}"]


def _interval(interval: Interval, style: str, prompts: int) -> str:
    if prompts == 1:
        return "-"
    return " .. ".join(style.format(end) for end in (interval.low, interval.high))


def picture_rows(found: Scored) -> Rows:
    """A row for each picture: its scores and, where it has a partner, the partner's and the gains."""
    gains, rows = found.gains(), []
    for k, picture in enumerate(found.pictures):
        row: dict[str, Any] = {"picture": picture.name, "prompt": picture.prompt}
        row |= {name: _number(values[k]) for name, values in found.scores.items()}
        if found.base is not None and found.partners is not None:
            row |= {"against": found.partners[k].name}
            row |= {f"{name}_against": _number(values[k]) for name, values in found.base.items()}
            row |= {f"{name}_gain": _number(values[k]) for name, values in gains.items()}
        rows.append(row)
    return rows


def prompt_rows(found: Scored) -> Rows:
    """A row for each prompt, in order of its first picture: means of its pictures."""
    columns = found.scores | {f"{name}_gain": values for name, values in found.gains().items()}
    places: dict[str, list[int]] = {}
    for k, picture in enumerate(found.pictures):
        places.setdefault(str(picture.prompt), []).append(k)
    return [
        {"prompt": prompt, "pictures": len(own)}
        | {name: _number(values[own].nanmean()) for name, values in columns.items()}
        for prompt, own in places.items()
    ]


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()


def prompt_table(rows: Rows, names: Sequence[str], compared: bool) -> Table:
    """The first prompts on the screen: means, or gains where pictures are compared."""
    more = f" (the first {SHOWN} of {len(rows):,}; --out has all)" if len(rows) > SHOWN else ""
    table = Table(title=f"{GAIN if compared else 'mean'} by prompt{more}")
    for column in ("prompt", "pictures", *names):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for row in rows[:SHOWN]:
        values = (row.get(f"{name}_gain") if compared else row[name] for name in names)
        style = "{:+.2f}" if compared else "{:.3f}"
        cells = ("-" if value is None else style.format(value) for value in values)
        table.add_row(row["prompt"], f"{row['pictures']:,}", *cells)
    return table


# --------------------------------------------------------------------------------------------------------------- files


def check_out(out: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError unless the table can be written there without a loss."""
    if out.suffix not in ENDINGS:
        raise UserError(f"--out={out}: give a file that ends in {' or '.join(ENDINGS)}.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}.")
    written = {file.resolve() for file in (out, by_prompt_file(out))}
    if written & {file.resolve() for file in inputs}:
        raise UserError(f"--out={out} would overwrite what is read; name another file.")


def by_prompt_file(out: Path) -> Path:
    """Where the means by prompt lie: beside the table of pictures."""
    return out.with_name(f"{out.stem}_by_prompt{out.suffix}")


def write_rows(rows: Rows, file: Path) -> None:
    """CSV or parquet, by the file's ending; whole or not at all. Empty cells are what cannot be known.

    Raises UserError where parquet files cannot be written.
    """
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        if file.suffix == ".parquet":
            _as_parquet(temporary, rows[0], file)
        else:
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _as_parquet(table: Path, row: dict[str, Any], file: Path) -> None:
    try:
        import duckdb
    except ImportError as error:
        raise UserError(
            f'--out={file}: parquet files are written by duckdb: pip install "overopt[parquet]".'
        ) from error
    texts, counts = ("picture", "prompt", "against"), ("pictures",)
    kinds = {name: "VARCHAR" if name in texts else "BIGINT" if name in counts else "DOUBLE" for name in row}
    try:
        found = duckdb.connect().read_csv(str(table), columns=kinds, header=True, delimiter=",", quotechar='"')
        found.write_parquet(str(file))
    except duckdb.Error as error:
        raise UserError(f"--out={file} could not be written ({first_line(error)}).") from error


def not_taken(found: Scored) -> list[str]:
    """Which rewards left pictures unscored, and how many, and what of the tables cannot be known, as sentences."""
    one = len({picture.prompt for picture in found.pictures}) == 1
    counts = {name: int(np.isnan(values.numpy()).sum()) for name, values in found.scores.items()}
    pictures = found.partners or found.pictures
    freedom = freedom_within([str(picture.prompt) for picture in pictures])
    told = [ONE_PROMPT] * one + ([] if freedom >= ENOUGH else [FEW.format(freedom) if freedom else ONE_PICTURE])
    return told + [
        f"{name} does not know the prompts of {count:,} of {len(found.pictures):,} pictures: left empty there."
        for name, count in counts.items()
        if count
    ]
