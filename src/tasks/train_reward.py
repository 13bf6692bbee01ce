"""Training of a reward model on preferences: `python -m src.run +experiment=train_reward_hps`.

Early stopping on held-out data, then a report on pictures that no reward has seen: accuracy against gold's noise-free
order, on all pairs and on clear ones, and on pairs of the untouched base model; calibration; agreement with gold.
"""

import time
from pathlib import Path
from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from omegaconf import DictConfig
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.functional.regression import spearman_corrcoef

from src.errors import TrainingError, UserError
from src.loggers.jsonl import JsonlLogger
from src.mini.data import to_float
from src.mini.preferences import Pool, pairs_of
from src.rewards.base import RewardModel
from src.runs.folder import open_run_dir, versions, write_json
from src.runs.resuming import how_to_go_on
from src.screen import quieten, show
from src.tasks.building import build, trainer_of
from src.tasks.session import fit, new_run, session

TEST_PAIRS, TEST_SEED = 4000, 12345


def run(composed: DictConfig) -> dict[str, Any]:
    """One reward model from composition to report; its weights lie in `reward/` of the run folder."""
    quieten()
    if composed.resume:
        raise UserError("resume= is for fine-tuning runs; training a reward takes minutes: start it anew.")
    if not composed.reward_training:
        raise UserError("task=train_reward needs a reward_training group: choose one of +experiment=train_reward_*.")
    cfg, folder = new_run(composed, "train_reward")
    with session(folder, resumable=False):
        return train_and_report(cfg, folder)


def train_and_report(cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains, keeps the best epoch, and writes its report and weights."""
    lightning.seed_everything(cfg["seed"], verbose=False)
    training = cfg["reward_training"]
    model: RewardModel = build(training["model"])
    data = build(training["data"])
    model.optimizer, model.centering = build(training["optimizer"]), training["centering"]
    open_run_dir(folder, cfg, checkpoint_bytes=3 * 4 * sum(p.numel() for p in model.learnable()))
    print(f"run folder: {folder}", flush=True)
    started = time.perf_counter()
    best = ModelCheckpoint(str(folder / "checkpoints"), "best", monitor="val/loss", enable_version_counter=False)
    trainer = trainer_of(
        cfg,
        enable_progress_bar=True,
        enable_checkpointing=True,
        max_epochs=training["max_epochs"],
        logger=JsonlLogger(folder / "metrics.jsonl"),
        callbacks=[
            best,
            EarlyStopping("val/loss", patience=training["patience"]),
            TQDMProgressBar(refresh_rate=10),
        ],
    )
    fit(trainer, model, data)
    kept = weights_of(best)
    model.load_state_dict(kept["state_dict"])
    model.eval()
    report = report_on(model, data.test_pool)
    summary = {
        "experiment": cfg["name"],
        "best_epoch": kept["epoch"],
        "training_seconds": time.perf_counter() - started,
        "test": report,
        "versions": versions(),
    }
    keep(model, folder / "reward")
    write_json(folder / "summary.json", summary)  # last: a sweep takes it for the end
    table = Table(title=f"{cfg['name']}: on pictures it has not seen")
    for column in ("pictures", "accuracy, all pairs", "accuracy, clear pairs", "calibration error", "rank correlation"):
        table.add_column(column, justify="right")
    for name, row in report.items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in ("all", "clear", "calibration_error", "rank_correlation")))
    show(table)
    print(f"weights: {folder / 'reward'}   metrics: {folder / 'metrics.jsonl'}")
    return summary


def keep(model: RewardModel, folder: Path) -> None:
    """Writes the reward. Raises UserError where there is no room."""
    try:
        model.save(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} could not be written ({error}): make room, then {how_to_go_on()}.") from error


def weights_of(best: ModelCheckpoint) -> dict[str, Any]:
    """The checkpoint of the best epoch. Raises TrainingError where no epoch had a loss that is a number."""
    if best.best_model_score is None or not best.best_model_score.isfinite():
        raise TrainingError("val/loss is not finite; start anew with a lower reward_training.optimizer.lr.")
    return torch.load(best.best_model_path, weights_only=True, map_location="cpu")


def report_on(model: RewardModel, pool: Pool) -> dict[str, dict[str, float]]:
    """Pairwise accuracy against gold and more, on mixed pictures and on those of the untouched base."""
    every = torch.arange(len(pool.images))
    scores = model.score(to_float(pool.images), pool.prompts(every))
    return {
        "mixed": _agreement(scores, pool, None),
        "untouched base": _agreement(scores, pool, pool.untouched),
    }


def _agreement(scores: Float[Tensor, " n"], pool: Pool, keep: Tensor | None) -> dict[str, float]:
    """Clear pairs are those whose |dU| is above the median."""
    index = pairs_of(pool, TEST_SEED, keep)[:TEST_PAIRS]
    truth = pool.utility[index[:, 0]] - pool.utility[index[:, 1]]
    margin = scores[index[:, 0]] - scores[index[:, 1]]
    right = ((margin > 0) == (truth > 0)).float()
    clear = truth.abs() > truth.abs().median()
    chosen = slice(None) if keep is None else keep
    return {
        "pairs": len(index),
        "all": right.mean().item(),
        "clear": right[clear].mean().item(),
        "calibration_error": binary_calibration_error(margin.sigmoid(), (truth > 0).int(), n_bins=10).item(),
        "rank_correlation": spearman_corrcoef(scores[chosen], pool.utility[chosen]).item(),
    }
