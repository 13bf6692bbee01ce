"""What a checkpoint that cannot be written is told as."""

import pytest
from lightning import Trainer

from src.callbacks.checkpoints import Checkpoints
from src.errors import UserError
from src.learner import Learner


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), UserError),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), UserError),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            RuntimeError,
        ),  # a bug
    ],
)
def test_a_full_disk_is_told_and_a_bug_is_not_hidden(tmp_path, error, told):
    def fails(path):
        path.write_text("half a file")
        raise error

    module = Learner()
    module.iteration = 1
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.save_checkpoint = fails
    with pytest.raises(told):
        Checkpoints(str(tmp_path), every=1).on_train_batch_end(trainer, module, None, None, 0)
    assert list((tmp_path / "checkpoints").iterdir()) == []
