"""What the training stages of the miniature world have in common."""

import math
from pathlib import Path

import torch
from lightning import LightningModule
from torch.utils.data import DataLoader

from src.mini.data import EmojiData, load_emoji


class Stage(LightningModule):
    """One network of the miniature world in training.

    A batch is a function of (seed, step) alone, so a stage that was killed goes on as if it had not been.
    Subclasses build their networks in `__init__`, define `training_step`, and write their weights in `export`.
    """

    def __init__(self, *, data_dir: str, weights_dir: str, steps: int, batch_size: int, lr: float, seed: int):
        super().__init__()
        self.data_dir, self.weights_dir = Path(data_dir), Path(weights_dir)
        self.steps, self.batch_size, self.lr, self.seed = steps, batch_size, lr, seed
        self.emoji: EmojiData = load_emoji(self.data_dir)

    def export(self) -> None:
        """Writes the trained weights in their library's own format."""
        raise NotImplementedError

    def step_generator(self) -> torch.Generator:
        """For whatever the step draws, so that a stage that goes on draws what it would have drawn."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(self.steps), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self):
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.01, betas=(0.9, 0.99))
        warmup = max(1, min(200, self.steps // 10))

        def cosine(step: int) -> float:
            progress = min(1.0, step / self.steps)
            return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
