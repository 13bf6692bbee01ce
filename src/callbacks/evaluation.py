"""Cross-reward evaluation: fixed prompts and seeds, every reward of the suite, against the base model's pictures."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image, ImageDraw
from torch import Tensor

from src.errors import UserError
from src.metrics.intervals import bootstrap_mean, spread_within
from src.rewards.base import RewardModel
from src.seeding import seed_of
from src.types import Metrics

EVALUATION_STREAM = 1 << 21  # keeps evaluation seeds apart from training seeds


class CrossRewardEvaluation(Callback):
    """Samples the same prompts with the same seeds before training, every `every` iterations, and at the end.

    Rewards are reported raw and as the gain over the base picture of the same prompt and seed, in base sd: the standard
    deviation of the base's samples about the mean of their prompt. (A reward learnt from comparisons within prompts has
    an arbitrary offset for each prompt, so its spread between prompts measures nothing.) Training does not notice:
    evaluation draws from generators of its own.

    Args:
        rewards: every reward to report, by name.
        samples_per_prompt: pictures a prompt, each with its own fixed seed.
        grid_pictures: pictures of the grid that is saved and logged.
        seed: of the evaluation noise; the same for all runs, so that runs compare picture by picture.
    """

    def __init__(
        self,
        run_dir: str,
        rewards: dict[str, RewardModel],
        prompts: list[str],
        samples_per_prompt: int,
        every: int,
        grid_pictures: int = 32,
        seed: int = 0,
    ):
        if every < 1 or samples_per_prompt < 1:
            raise UserError(f"evaluation.every={every} and samples_per_prompt={samples_per_prompt} must be at least 1.")
        self.folder, self.every, self.grid_pictures = Path(run_dir) / "samples", every, grid_pictures
        self.rewards = rewards
        self.prompts = [prompt for _ in range(samples_per_prompt) for prompt in prompts]
        self.seeds = [seed_of(seed, i, EVALUATION_STREAM) for i in range(len(self.prompts))]
        self.base: dict[str, np.ndarray] = {}
        self.seconds = 0.0
        self.history: list[Metrics] = []

    def state_dict(self) -> dict[str, Any]:
        base = {name: torch.from_numpy(scores) for name, scores in self.base.items()}
        return {"base": base, "history": self.history, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base = {name: scores.numpy() for name, scores in state_dict["base"].items()}
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for reward in self.rewards.values():
            reward.to(pl_module.device)  # all but the trained one are part of no module
        if not self.base:
            self.evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.iteration % self.every == 0 or trainer.is_last_batch:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = time.perf_counter()
        images = pl_module.policy.sample(self.prompts, self.seeds).images
        scores = {name: reward.score(images, self.prompts).cpu().numpy() for name, reward in self.rewards.items()}
        for name, values in scores.items():
            pl_module.check_finite(f"the evaluation by {name}", torch.from_numpy(values))
        self.base = self.base or scores
        metrics: Metrics = {}
        for name, values in scores.items():
            metrics |= self._compare(name, values)
        self.history.append(pl_module.record("evaluation", metrics))
        self._save_grid(trainer, pl_module, images, scores)
        self.seconds += time.perf_counter() - start

    def _compare(self, name: str, values: np.ndarray) -> Metrics:
        base = self.base[name]
        base_sd = max(spread_within(base, self.prompts), 1e-12)
        gain = bootstrap_mean((values - base) / base_sd, self.prompts)
        return {
            f"eval/{name}/mean": float(values.mean()),
            f"eval/{name}/std": float(values.std()),
            f"eval/{name}/base_sd": base_sd,
            f"eval/{name}/gain": gain.mean,
            f"eval/{name}/gain_low": gain.low,
            f"eval/{name}/gain_high": gain.high,
            f"eval/{name}/win_rate": float(((values > base) + 0.5 * (values == base)).mean()),
        }

    def _save_grid(
        self, trainer: Trainer, pl_module: LightningModule, images: Tensor, scores: dict[str, np.ndarray]
    ) -> None:
        if not trainer.is_global_zero:
            return
        n = self.grid_pictures
        trained = pl_module.reward_name
        labels = [f"{p} {s:.1f}" for p, s in zip(self.prompts[:n], scores[trained][:n], strict=False)]
        grid = picture_grid(images[:n], labels)
        self.folder.mkdir(exist_ok=True)
        grid.save(self.folder / f"{pl_module.iteration:05d}.png")
        caption = f"iteration {pl_module.iteration}, {pl_module.reward_queries} reward queries; label: {trained}"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                picture = wandb.Image(grid, caption=caption)
                logger.experiment.log({"samples": picture, "reward_queries": pl_module.reward_queries})


def picture_grid(images: Tensor, labels: list[str], columns: int = 8, size: int = 128) -> Image.Image:
    """Pictures [b, 3, h, w] in [0, 1] as one grid, each with its label below."""
    rows, line = -(-len(images) // columns), 14
    canvas = Image.new("RGB", (columns * size, rows * (size + line)), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (picture, label) in enumerate(zip(images, labels, strict=True)):
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        x, y = k % columns * size, k // columns * (size + line)
        canvas.paste(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC), (x, y))
        draw.text((x + 3, y + size), label, fill="black")
    return canvas
