"""The errors a user can mend: shown as one sentence, exit code 2, never as a traceback."""


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and how to mend it."""


class TrainingError(Exception):
    """A run that had to stop, such as a NaN; the message names the culprit. Exit code 1."""
