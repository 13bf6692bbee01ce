"""The screen: tables on it, and what becomes of a run when it is gone."""

import errno
import io
import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.table import Table

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # of a pipe whose reader has ended, a terminal that is closed, no file


def show(table: Table, width: int = 110) -> None:
    """Prints text as it is, units in brackets included; `width` columns wide where the output goes into a file."""
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(markup=False, width=width)
    console.print(table)


def survive_its_end() -> None:
    """What is printed from here on is lost, and stops nothing, once nobody reads it (`| head -1`, a closed terminal).

    Nor does a character that the screen's encoding lacks stop anything.
    """
    for descriptor in (0, 1, 2):  # one that was closed (`>&-`) would be the next file's
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # of what has been printed before
                stream.reconfigure(errors="backslashreplace")
        if stream is not None and not isinstance(stream, _Lasting):
            setattr(sys, name, _Lasting(stream))


def quieten() -> None:
    """Leaves on the screen what a user needs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch.utils._pytree")


class _Lasting:
    """A text stream that goes on into nothing when its file is gone."""

    def __init__(self, stream: Any):  # a text stream, or what stands in for one
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._forget(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._forget(error)

    def _forget(self, error: OSError) -> None:
        """Replaces the file below, which other libraries write to as well."""
        if error.errno not in GONE:
            raise error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)
