"""What a process settles with the system's libraries before torch is imported: how threads wait, how memory is kept.

libgomp reads GOMP_SPINCOUNT at import: how long a thread that waits for the others keeps its core. Short costs a run of
two threads that is alone a fifth of its time. Long, two such runs on two cores take twice their fair share each. So:
long for whoever finds the machine idle, short for whoever comes to a busy one.

glibc gives the memory of freed tensors back to the system and asks for it again in every step, which costs a run in the
miniature world 5 to 8% of its time. So: it keeps blocks of up to a gibibyte.
"""

import ctypes
import os
import statistics
import time
from pathlib import Path

ALONE, SHARED = "20000", "1000"  # turns of the waiting loop: about a millisecond, and a twentieth
READINGS, APART = 5, 0.005  # seconds between them
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30  # bytes
THEIR_OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def set_spin_count() -> None:
    """Sets GOMP_SPINCOUNT, unless the user has decided. What a parent process found is asked anew."""
    if "OMP_WAIT_POLICY" not in os.environ and os.environ.get("GOMP_SPINCOUNT", ALONE) == ALONE:
        os.environ["GOMP_SPINCOUNT"] = SHARED if machine_is_busy() else ALONE


def machine_is_busy(told: Path = Path("/proc/loadavg")) -> bool:
    """Whether others keep half of the cores busy, or more, at this moment; no where the system does not tell."""
    found = []
    for reading in range(READINGS):
        time.sleep(APART if reading else 0)
        try:
            running = told.read_text(encoding="ascii").split()[3].split("/")[0]  # as in "0.20 0.18 0.12 1/80 11206"
            found.append(int(running) - 1)  # the reader is one of them
        except (OSError, ValueError, IndexError):
            return False
    return statistics.median(found) >= max(1, (os.cpu_count() or 1) / 2)


def keep_freed_memory() -> bool:
    """Whether glibc now keeps it: not where the user has settled it, nor where there is no glibc."""
    change = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if change is None or any(name in os.environ for name in THEIR_OWN):
        return False
    return bool(change(M_MMAP_THRESHOLD, KEPT) and change(M_TRIM_THRESHOLD, KEPT))
