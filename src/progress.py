"""Bars with the time left, for whatever takes more than ten seconds; where there is no terminal, a line a minute.

`track(items, told)` goes through a sequence. `Bar(told, total, of="pictures")` is moved by `advance("pictures", n)`,
from wherever the work is done. Bars within others stand below them.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import ClassVar, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
A_MINUTE = 60.0


class Bar:
    """One bar, between `start` and `end`, or as a context.

    Args:
        told: what stands before it.
        of: the name by which `advance` finds it.
        lines: whether it is told of without a terminal, to stderr.
    """

    live: ClassVar[Progress | None] = None
    opened: ClassVar[list["Bar"]] = []

    def __init__(self, told: str, total: int, of: str = "", done: int = 0, lines: bool = True):
        self.told, self.total, self.of, self.done, self.lines = told, total, of, done, lines

    def start(self) -> "Bar":
        """Shows it, on a terminal, below the bars that are open; returns it."""
        self._first, self._begun = self.done, time.monotonic()
        self._line = self._begun
        if Bar.live is None and (console := Console()).is_terminal and _speaks():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            Bar.live = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            Bar.live.start()
        Bar.opened.append(self)
        if Bar.live is not None:
            self._task = Bar.live.add_task(self.told, total=self.total, completed=self.done)
        return self

    def update(self, done: int, told: str | None = None) -> None:
        """Never beyond its end."""
        self.done = min(done, self.total)
        if Bar.live is not None:
            Bar.live.update(self._task, completed=self.done, description=told)
        elif self.lines and time.monotonic() - self._line > A_MINUTE and _speaks():
            self._line = time.monotonic()
            left = (self._line - self._begun) * (self.total - self.done) / max(1, self.done - self._first)
            told = f"{self.told}: {self.done:,} of {self.total:,}  {left / 60:.1f} min left"
            print(told, file=sys.stderr, flush=True)

    def end(self) -> None:
        """The last one leaves the screen as it is; others go."""
        if self not in Bar.opened:
            return
        Bar.opened.remove(self)
        if Bar.live is None:
            return
        if Bar.opened:
            Bar.live.remove_task(self._task)
        else:
            Bar.live.stop()
            Bar.live = None

    def __enter__(self) -> "Bar":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()


def _speaks() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def advance(of: str, n: int = 1) -> None:
    """n more of what the innermost open bar of that name counts."""
    bar = next((bar for bar in reversed(Bar.opened) if bar.of == of), None)
    if bar is not None:
        bar.update(bar.done + n)


def track(items: Iterable[Item], told: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar that moves when the next one is asked for."""
    with Bar(told, len(items) if total is None else total) as bar:  # type: ignore[arg-type]
        for item in items:
            yield item
            bar.update(bar.done + 1)
