"""Every algorithm, and every regulariser with DDPO, as small as a run can be; found in conf/, as new ones will be."""

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from lightning import Callback

from src.config import check
from src.prompts import PromptData
from src.tasks.building import build, build_finetuner, trainer_of
from src.tasks.finetune import fine_tune
from src.tasks.session import fit
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
    "kl_reward": ("regulariser.beta=10.0", "regulariser.target=1e-3", "regulariser.move_every=2"),
    "kl_loss": ("regulariser.beta=10.0", "regulariser.target=1e-3", "regulariser.move_above=1e9"),
    "gardo": ("regulariser.beta=10.0", "regulariser.quantile=0.5", "regulariser.move_every=2"),
}


def names_in(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


Case = tuple[str, str]  # algorithm, regulariser
CASES: list[Case] = [(name, "none") for name in names_in("algorithm") if name != "ddpo"]
CASES += [("ddpo", name) for name in names_in("regulariser") if name != "none"]


def configured(case: Case, folder: Path, *overrides: str) -> dict[str, Any]:
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


# Adam's steps are all of one size, be their gradients rounding errors or not, unless these are small beside its epsilon
SHARED = ("samples_per_prompt=2", "microbatch=3", "optimizer.eps=1", "optimizer.lr=0.3", "critic_optimizer.eps=1")


def train(cases: list[Case], folder: Path, place: dict[str, str], *overrides: str) -> None:
    """Two iterations of each case; leaves the last row, and gradients as optimizers remember them, in CASE.pt.

    Args:
        place: of two processes, this one's in the environment.
    """
    os.environ |= place
    for case in cases:
        cfg = configured(case, folder, *SHARED, *overrides, f"trainer.devices={2 if place else 1}")
        pairs = get_object(cfg["algorithm"]["_target_"]).pairs
        samples = 4 if pairs else 6  # of the latter, the second prompt's are on both ranks
        finetuner, _ = build_finetuner(cfg)
        trainer = trainer_of(cfg, limit_train_batches=2, logger=False)
        fit(trainer, finetuner, PromptData(build(cfg["prompts"]).train, samples, 2, seed=0))
        if trainer.is_global_zero:
            kept = [
                torch.cat([values["exp_avg"].flatten() for values in optimizer.state.values()])
                for optimizer in trainer.optimizers
            ]
            averaged = [value.flatten() for value in finetuner.averaged or []]
            row = {key: value for key, value in finetuner.latest.items() if key != "seconds"}
            torch.save({"row": row, "gradients": kept, "averaged": averaged}, folder / f"{'-'.join(case)}.pt")


def written_in(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes the files that a guide tells to write, and imports its modules; returns the folder of configurations."""
    text = (ROOT / page).read_text()
    for place, content in re.findall(r"^`(\S+)`:\n\n<!-- [^>]* -->\n```\w+\n(.*?)^```", text, re.M | re.S):
        path = folder / place
        path.parent.mkdir(parents=True)
        path.write_text(content)
        if path.suffix == ".py":
            spec = importlib.util.spec_from_file_location(place.removesuffix(".py").replace("/", "."), path)
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
    return folder / "conf"
