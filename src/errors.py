"""The errors a user can mend: shown as one sentence, exit code 2, never as a traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from src import overrides
from src.runs.resuming import how_to_go_on

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

LOWER_RATE = "The last checkpoint and the metrics so far are intact; start anew with a lower learning rate."
BASE_IS_BROKEN = "Nothing has been trained yet: look at the base model's weights, guidance= and trainer.precision=."


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and how to mend it."""


class TrainingError(Exception):
    """A run that had to stop, such as a NaN; the message names the culprit. Exit code 1."""


MENDABLE = (
    UserError,
    ValueError,
    OSError,
)  # what a component says of an option it cannot take, or a file it cannot read


def sentence_of(error: BaseException) -> tuple[str, int] | None:
    """What the user is told of an error, and the exit code; None for a bug, which needs its traceback."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error}; free some space, then {how_to_go_on()}.", 2
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        mend = ": give this user the right to it, or name another place" if error.errno in FORBIDDEN else ""
        return f"{error.filename}: {error.strerror}{mend}.", 2
    if rejected := overrides.why(error):
        return rejected, 2
    if not isinstance(error, UserError | TrainingError | HydraException | OmegaConfBaseException):
        return None
    told: BaseException = error
    if isinstance(error, InstantiationException):
        told = error.__cause__ or error  # what the component's constructor said; Hydra only wraps it
        if not isinstance(told, MENDABLE):
            return None
    lines = [line.strip() for line in str(told).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(told).__name__, 1 if isinstance(told, TrainingError) else 2


def reward_is_broken(name: str) -> str:
    """What to do about a reward that gives no number to a picture that is one."""
    return f"The pictures are in order, so no learning rate mends it: mend the reward, or leave {name} out."


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def told_in_one_sentence() -> Iterator[None]:
    """Turns the errors a user can mend into one sentence and an exit code."""
    try:
        yield
    except Exception as error:
        told = sentence_of(error)
        if told is None:
            raise
        print(f"error: {told[0]}", file=sys.stderr)
        sys.exit(told[1])
