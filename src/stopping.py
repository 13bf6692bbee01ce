"""Signals that tell a command to stop.

SIGINT (Ctrl-C), SIGTERM (schedulers, containers, `timeout`), SIGHUP (a terminal that is gone), and those that
schedulers send ahead of a limit.

Where stopping loses nothing the command stops at once, by an exception. A training iteration is finished first, so that
it can be kept, unless that takes longer than GRACE, or the signal comes again; Ctrl-C never waits. The exit code is 128
plus the signal's number, the shell's convention.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)  # of Slurm (--signal), Grid Engine (-notify), and LSF
GRACE = 20.0  # s for the iteration; Slurm and Kubernetes kill 30 s after they have asked
ECHO = 2.0  # s in which a signal that comes again is the same: `timeout` sends one to its child and one to its group
AGAIN = 5.0  # s after which an exception that something has swallowed is raised anew
SOON = 0.05  # s after which it is looked again whether an import has ended


class Stopped(KeyboardInterrupt):
    """Raised where a signal interrupts the command."""

    def __init__(self, signum: int):
        self.signal = signal.Signals(signum)
        super().__init__(self.signal.name)

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, the shell's convention."""
        return 128 + self.signal


def stopped_by(interruption: KeyboardInterrupt) -> Stopped:
    """The same with its signal, where a library has made a KeyboardInterrupt of its own of it."""
    return interruption if isinstance(interruption, Stopped) else Stopped(_state.asked or signal.SIGINT)


class _State:
    """Of this process. Nothing is logged or raised twice, for handlers run between any two instructions."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal
        self.at = 0.0  # when
        self.beginning = True  # nothing has been done yet that would need an end
        self.in_iteration = False
        self.leaving = False


_state = _State()


def listen(whoever_did: bool = False) -> None:
    """Handles the signals that this process does not ignore (as `nohup` asks for) or handle already.

    Args:
        whoever_did: in place of other handlers, too, and of ignoring SIGINT, as Ray's workers do; the schedulers'
            warnings excepted, which submitit answers by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in (*SIGNALS, *WARNINGS):
        before = signal.getsignal(signum)
        free = before in (signal.SIG_DFL, signal.default_int_handler)
        taken = whoever_did and signum in SIGNALS and (before != signal.SIG_IGN or signum == signal.SIGINT)
        if free or taken:
            signal.signal(signum, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)


def begun() -> None:
    """From here on a signal is an exception; before, it ends the process with a sentence."""
    global _state
    if _state.asked is None or _state.leaving:  # of a job before, in this process
        _state = _State()
    _state.beginning = False


def asked() -> bool:
    """Whether a signal waits for the end of the iteration."""
    return _state.asked is not None and not _state.leaving


def stop() -> None:
    """Raises Stopped, for the signal that was asked by; on a rank that heard of none, for the SIGTERM of another."""
    raise Stopped(_state.asked or signal.SIGTERM)


@contextmanager
def in_iterations() -> Iterator[None]:
    """A signal that comes within, once `iteration_begins` was called, waits for whoever looks at `asked`."""
    try:
        yield
    finally:
        _state.in_iteration = False
    if asked():
        stop()


def iteration_begins() -> None:
    """From now on a signal waits for the iteration's end."""
    _state.in_iteration = True


def leave() -> None:
    """Nothing interrupts what is done from here on: the end."""
    _state.leaving = True
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.leaving or (_state.asked is not None and now - _state.at < ECHO and signum != signal.SIGINT):
        return
    again, _state.asked, _state.at = _state.asked is not None, signum, now
    name = signal.Signals(signum).name
    if _state.beginning:
        _tell("stopped before it began; the same command begins anew.")
        os._exit(128 + signum)
    if _state.in_iteration and not again and signum != signal.SIGINT:
        _tell(f"{name}: stops after this iteration, or at once in {GRACE:.0f} s or if told so again.")
        signal.setitimer(signal.ITIMER_REAL, GRACE, AGAIN)
        return
    _interrupt(frame)


def _on_alarm(signum: int, frame: FrameType | None) -> None:
    if asked():
        _interrupt(frame)


def _interrupt(frame: FrameType | None) -> None:
    """Raises Stopped; but an import is finished first, for half a module breaks those who catch what it raises."""
    signal.setitimer(signal.ITIMER_REAL, SOON if _importing(frame) else AGAIN, AGAIN)
    if not _importing(frame):
        stop()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _tell(sentence: str) -> None:
    """On stderr, past Python's buffers, which the handler may have interrupted. One rank speaks for all."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError):  # where there is no screen any more
            os.write(2, f"{sentence}\n".encode())
