"""What an evaluation says, on the screen."""

from collections.abc import Sequence

from rich.table import Table

from src.types import Row


def outcome_table(final: Row, trained: str | None, title: str, of: str = "") -> Table:
    """A row for each reward that has a gain; `of` is _ema for averaged weights."""
    table = Table(title=title)
    for column in ("reward", "mean", "gain [base sd]", "95% interval", "below peak", "win rate", "held-out gain"):
        table.add_column(column, justify="right")
    for key in final:
        if key.startswith(f"eval{of}/") and key.endswith("/gain"):
            name = key.split("/")[1]
            measures = ("mean", "gain", "gain_low", "gain_high", "below_peak", "win_rate")
            value = {measure: final[f"eval{of}/{name}/{measure}"] for measure in measures}  # all, where there is a gain
            held_out = final.get(f"held_out{of}/{name}/gain")
            table.add_row(
                f"{name} (trained)" if name == trained else name,
                f"{value['mean']:.3f}",
                f"{value['gain']:+.2f}",
                f"{value['gain_low']:+.2f} .. {value['gain_high']:+.2f}",
                f"{value['below_peak']:.2f}",
                f"{value['win_rate']:.2f}",
                "-" if held_out is None else f"{held_out:+.2f}",
            )
    return table


def kl_sentence(final: Row) -> str:
    """The KL from the base, nats a trajectory, or why there is none."""
    if "kl/trajectory" not in final:
        return "no KL from the base: a step without noise has no density"
    return f"KL from the base {final['kl/trajectory']:.1f} nats"


def curve_table(title: str, firsts: dict[str, list[str]], rows: Sequence[Row], names: Sequence[str]) -> Table:
    """A row for each point of a curve: the columns that are given by their titles, then the gain of each reward."""
    table = Table(title=title)
    for column in (*firsts, *names):
        table.add_column(column, justify="right")
    for k, row in enumerate(rows):
        gains = (row.get(f"eval/{name}/gain") for name in names)
        cells = ("-" if gain is None else f"{gain:+.2f}" for gain in gains)
        table.add_row(*(column[k] for column in firsts.values()), *cells)
    return table
