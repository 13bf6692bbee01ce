"""Rebuilds the miniature world from the pictures: `python -m src.mini.build stage=vae` (or clip, unet, ...).

Each stage writes checkpoints under `work_dir` every few minutes and goes on from the last one when called again.
"""

import sys
from pathlib import Path

import hydra
import lightning
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from src.errors import UserError


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    torch.set_num_threads(cfg.threads)
    lightning.seed_everything(cfg.seed, verbose=False)
    last = Path(cfg.work_dir) / "last.ckpt"
    try:
        stage = instantiate(cfg.stage)
        saved = torch.load(last, weights_only=False, map_location="cpu") if last.exists() else None
        if saved and saved["global_step"] >= stage.steps:
            stage.load_state_dict(saved["state_dict"])  # the averaged weights
        else:
            trainer = instantiate(cfg.trainer)
            trainer.fit(stage, ckpt_path=str(last) if saved else None, weights_only=False)
            if trainer.global_step < stage.steps:
                sys.exit("stopped; the same command goes on from the last checkpoint.")
        stage.eval()
        stage.export()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
