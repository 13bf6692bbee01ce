"""`python -m src.run` in a fork of a process that has imported everything: eight seconds less a command.

For commands whose start is not what is tested, without an environment of their own and with one process.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["src.tasks.finetune"])


def started(overrides: list[str], told: Path) -> BaseProcess:
    """The command, running; it prints to the files `out` and `err` in the folder `told`."""
    process = FORKS.Process(target=_run, args=(overrides, told, dict(os.environ)))
    process.start()
    return process


def run_forked(*overrides: str) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        process = started(list(overrides), Path(folder))
        process.join(300)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(overrides, 300)
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(overrides, process.exitcode, out, err)


def _run(overrides: list[str], told: Path, environment: dict[str, str]) -> None:
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(told / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["src.run", *overrides]
    atexit._clear()  # what the imports registered would remove folders that all forks share
    try:
        runpy.run_module("src.run", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out, and W&B ends its service in one
