"""Threads wait for long on an idle machine and shortly on a busy one; freed memory is kept; users may differ."""

import os
import platform
import resource

import pytest
import torch

from src import process
from src.process import ALONE, SHARED, keep_freed_memory, machine_is_busy, set_spin_count


@pytest.mark.parametrize(
    ("told", "busy"),
    [
        ("0.20 0.18 0.12 1/80 11206\n", False),  # the reader alone
        ("0.20 0.18 0.12 2/80 11206\n", False),
        ("0.20 0.18 0.12 3/80 11206\n", True),  # two others on four cores
        ("9.00 9.00 9.00 1/80 11206\n", False),  # it was busy, and is no longer
        ("something else\n", False),
    ],
)
def test_a_machine_is_busy_where_others_run_on_half_of_its_cores(told, busy, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "loadavg").write_text(told, encoding="ascii")
    assert machine_is_busy(tmp_path / "loadavg") == busy


def test_a_system_that_does_not_tell_is_idle(tmp_path):
    assert not machine_is_busy(tmp_path / "loadavg")


@pytest.mark.parametrize(
    ("before", "busy", "after"),
    [
        ({}, False, ALONE),
        ({}, True, SHARED),
        ({"GOMP_SPINCOUNT": "7"}, True, "7"),
        ({"GOMP_SPINCOUNT": ALONE}, True, SHARED),  # of a parent process that began on an idle machine
        ({"OMP_WAIT_POLICY": "active"}, True, None),
    ],
)
def test_what_the_user_has_set_stays(before, busy, after, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process, "machine_is_busy", lambda: busy)
    set_spin_count()
    assert os.environ.get("GOMP_SPINCOUNT") == after


def pages_handed_out(times: int) -> int:
    """By the system, while a block of 64 MiB is filled and freed again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    assert keep_freed_memory()
    pages_handed_out(30)  # until there is a place for it
    assert pages_handed_out(10) < 3 * 2**26 / resource.getpagesize()  # otherwise the pages of ten blocks


def test_whoever_has_settled_it_keeps_their_own(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    assert not keep_freed_memory()
