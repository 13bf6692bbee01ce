"""The rule of the overoptimization watch: what it follows, and when it raises the alarm."""

from collections.abc import Mapping
from typing import Any, Literal

Signal = Literal["trained", "others", "all"]


def signal_of(row: Mapping[str, Any], trained: str, rewards: list[str], signal: Signal) -> float | None:
    """Mean gain over the named rewards on prompts that no run trains on, base sd; None where the row has no such gain.

    A policy that learns what the reward stands for carries it over to new prompts; one that learns to please the
    network on its own prompts does not, and spoils the others.
    """
    chosen = {"trained": [trained], "others": [name for name in rewards if name != trained], "all": rewards}[signal]
    gains = [row.get(f"held_out/{name}/gain") for name in chosen]
    known = [gain for gain in gains if gain is not None]
    return float(sum(known) / len(known)) if known and len(known) == len(gains) else None


def alarm_index(signals: list[float], margin: float, patience: int) -> int | None:
    """The first evaluation at which the signal has been more than `margin` below its peak `patience` times in a row."""
    peak, below = float("-inf"), 0
    for k, value in enumerate(signals):
        peak = max(peak, value)
        below = below + 1 if peak - value > margin else 0
        if below >= patience:
            return k
    return None
