"""A run that is told to stop finishes its iteration, where it has begun one, and keeps it."""

import signal
import threading
from typing import Any

from lightning import Callback, Trainer

from src import stopping
from src.learner import Learner


class StopsAtSignals(Callback):
    """Lets SIGTERM be handled as it was before Lightning, whose own handler ends the process with exit code 0.

    The end of the iteration, once its checkpoint is written, is where the run stops: see Checkpoints.
    """

    def setup(self, trainer: Trainer, pl_module: Learner, stage: str) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: Learner) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Learner, batch: Any, batch_idx: int) -> None:
        stopping.iteration_begins()
