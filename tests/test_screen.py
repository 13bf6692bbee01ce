"""A screen that is gone, closed, or knows few characters stops no run."""

import functools
import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from src.screen import show, survive_its_end
from tests.conftest import TINY, rows_of
from tests.forked import call_forked, started


def nobody_reads(*descriptors: int) -> None:
    """As `| head -1` leaves a pipe once it has its line."""
    for descriptor in descriptors:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, descriptor)
        setattr(sys, ("stdout", "stderr")[descriptor - 1], os.fdopen(descriptor, "w", closefd=False))


def printing() -> None:
    nobody_reads(1, 2)
    survive_its_end()
    for stream in (sys.stdout, sys.stderr):
        print("lost", file=stream, flush=True)
        print("lost in the end", file=stream)
    show(Table("lost"))
    Console().print("lost")
    os.write(1, b"lost")
    sys.exit(7)


def test_what_nobody_reads_is_lost():
    assert call_forked(printing).returncode == 7


@pytest.mark.slow
def test_a_run_whose_screen_is_gone_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = started([*TINY, "reset.every=1", f"run_dir={folder}"], tmp_path, functools.partial(nobody_reads, 1))
    process.join(300)
    assert process.exitcode == 0 and (tmp_path / "err").read_text() == ""
    assert len(rows_of(folder, "iteration")) == 2 and (folder / "report.html").exists()


def closed(folder: Path) -> None:
    """All three descriptors, as `<&- >&- 2>&-` leaves them."""
    sys.stdout = sys.stderr = None
    os.closerange(0, 3)
    survive_its_end()
    print("lost", flush=True)
    with (folder / "file").open("w") as file:
        file.write(str(file.fileno() > 2))


def test_a_closed_descriptor_is_not_the_next_files(tmp_path):
    assert call_forked(closed, tmp_path).returncode == 0
    assert (tmp_path / "file").read_text() == "True"


def ascii_only() -> None:
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), "ascii")
    survive_its_end()
    print("größer")


def test_a_character_that_the_screen_lacks_is_told_by_number():
    done = call_forked(ascii_only)
    assert (done.returncode, done.stdout) == (0, "gr\\xf6\\xdfer\n")


def full() -> None:
    sys.stdout = Path("/dev/full").open("w")  # noqa: SIM115
    survive_its_end()
    print("lost", flush=True)


def test_a_full_disk_is_told_all_the_same():
    assert "No space left" in call_forked(full).stderr
