"""`python -m src.run`, or a function, in a fork of a process that has imported everything: eight seconds less each.

For commands whose start is not what is tested, with one process.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm"])


def started(overrides: list[str], told: Path, before: Callable[[], Any] | None = None) -> BaseProcess:
    """The command, running; it prints to the files `out` and `err` in the folder `told`.

    Args:
        before: is called in the process before the command.
    """
    return started_call(told, _command, overrides, before)


def run_forked(*overrides: str, before: Callable[[], Any] | None = None) -> subprocess.CompletedProcess:
    return call_forked(_command, list(overrides), before)


def call_forked(function: Callable[..., Any], *arguments: Any) -> subprocess.CompletedProcess:
    """Calls the function of a module in a process of its own, with the environment of this one."""
    with tempfile.TemporaryDirectory() as folder:
        process = started_call(Path(folder), function, *arguments)
        process.join(300)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(str(arguments), 300)
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def started_call(told: Path, function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """The function of a module, being called in a process of its own; see `started`."""
    process = FORKS.Process(target=_apart, args=(told, dict(os.environ), function, arguments))
    process.start()
    return process


def places(world: int) -> list[dict[str, str]]:
    """What a launcher says to each of so many processes that are to meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    return [meeting | {"LOCAL_RANK": str(rank), "RANK": str(rank)} for rank in range(world)]


def _apart(told: Path, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(told / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server of forks ignores it
    atexit._clear()  # what the imports registered would remove folders that all forks share
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out, and W&B ends its service in one


def _command(overrides: list[str], before: Callable[[], Any] | None) -> None:
    sys.argv = ["src.run", *overrides]
    if before is not None:
        before()
    runpy.run_module("src.run", run_name="__main__", alter_sys=True)
