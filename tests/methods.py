"""Every algorithm, and every regulariser with DDPO, as small as a run can be: found in conf/, so that new ones are too."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback

from src.config import check
from src.tasks.finetune import fine_tune
from tests.conftest import ROOT, composed

SMALL = (
    *(
        "+debug=tiny",
        "logger.mode=disabled",
        "trainer.accelerator=cpu",
        "policy=lora",
        "num_steps=2",
        "callbacks.watch=null",
    ),
    *("suite.judges=null", "~suite.rewards.pickscore", "~suite.rewards.imagereward"),
    *("evaluation.max_prompts=2", "evaluation.grid_pictures=2", "critic.precision=fp32"),
)
STATEFUL = {  # options by which what a regulariser keeps matters from one iteration to the next
    "kl_reward": ("regulariser.target=1e-3", "regulariser.move_every=1"),
    "kl_loss": ("regulariser.beta=10", "regulariser.target=1e-3", "regulariser.move_above=1e9"),
    "gardo": ("regulariser.beta=10", "regulariser.move_every=2"),
}


def names_in(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


CASES = [(name, "none") for name in names_in("algorithm") if name != "ddpo"]
CASES += [("ddpo", name) for name in names_in("regulariser") if name != "none"]


def configured(case: tuple[str, str], folder: Path, *overrides: str) -> dict[str, Any]:
    """A checked configuration of a run in this folder."""
    algorithm, regulariser = case
    chosen = (f"algorithm={algorithm}", f"regulariser={regulariser}", *STATEFUL.get(regulariser, ()))
    return check(composed(*SMALL, *chosen, *overrides)) | {"name": "small", "run_dir": str(folder)}


class Killed(Callback):
    """Kills the process after this iteration, when it has been logged and not been kept; state.ckpt is for a look."""

    def __init__(self, run_dir: str, after: int):
        self.path, self.after = Path(run_dir) / "state.ckpt", after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.iteration == self.after:
            trainer.save_checkpoint(self.path)
            os.kill(os.getpid(), signal.SIGKILL)


def run_in(cfg: dict[str, Any]) -> None:
    """What the entry point does, where it has composed the configuration."""
    folder = Path(cfg["run_dir"])
    folder.mkdir(exist_ok=True)
    fine_tune(cfg, folder)
