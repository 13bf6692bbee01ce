"""Tables on the screen."""

from rich.console import Console
from rich.table import Table


def show(table: Table, width: int = 110) -> None:
    """Prints text as it is, units in brackets included; `width` columns wide where the output goes into a file."""
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(markup=False, width=width)
    console.print(table)
