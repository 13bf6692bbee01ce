"""checkpoints/last.ckpt, written whole or not at all, every k iterations, at the end, and where a run is stopped."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from numpy._core.multiarray import scalar

from src import stopping
from src.errors import UserError
from src.files import make_folder
from src.learner import Learner
from src.runs.resuming import how_to_go_on

WRITER = ("PytorchStreamWriter", "unexpected pos")  # in what torch says where a file cannot be written


def harmless_contents() -> AbstractContextManager:
    """What `torch.load(weights_only=True)` takes beside tensors and plain containers: numbers of numpy's.

    A checkpoint may come from anybody: nothing in it is executed.
    """
    scalars: list[Any] = [scalar, np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]
    return torch.serialization.safe_globals(scalars)


class Checkpoints(Callback):
    """Saves after the iteration's rows are logged, so that a checkpoint and the metrics before it belong together.

    Where a signal has told any rank to stop, all of them save and stop.
    """

    def __init__(self, run_dir: str, every: int):
        self.path, self.every = Path(run_dir) / "checkpoints" / "last.ckpt", every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Learner, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = pl_module.iteration % self.every == 0 or trainer.is_last_batch or trainer.should_stop
        if due:
            self.save(trainer)
        if not pl_module.ranks.agree(not stopping.asked(), pl_module.device):
            if not due:
                self.save(trainer)
            stopping.stop()

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint beside the one before, then replaces it. Raises UserError where there is no room."""
        make_folder(self.path.parent)
        partial = self.path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                partial.replace(self.path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            if not isinstance(error, OSError) and not any(sign in str(error) for sign in WRITER):
                raise
            raise UserError(
                f"{self.path} could not be written ({error}); the one before is intact: make room, then "
                f"{how_to_go_on()}."
            ) from error
