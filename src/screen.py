"""Tables on the screen."""

import io
import sys

from rich.console import Console
from rich.table import Table


def take_any_text() -> None:
    """From here on what the screen's encoding lacks is printed as an escape, and stops nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show(table: Table, width: int = 110) -> None:
    """Prints text as it is, units in brackets included; `width` columns wide where the output goes into a file."""
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(markup=False, width=width)
    console.print(table)
