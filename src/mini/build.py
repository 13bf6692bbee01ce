"""Rebuilds the miniature world from the pictures: `python -m src.mini.build stage=vae` (or clip, unet, ...).

Each stage writes checkpoints under `work_dir` every few minutes and goes on from the last one when called again.
"""

import sys
from pathlib import Path

import hydra
import lightning
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from src.errors import told_in_one_sentence
from src.files import expanded


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Trains a stage, or goes on with it, and exports its weights."""
    cfg = OmegaConf.create(expanded(OmegaConf.to_container(cfg, resolve=True)))
    torch.set_num_threads(cfg.threads)
    lightning.seed_everything(cfg.seed, verbose=False)
    last = Path(cfg.work_dir) / "last.ckpt"
    with told_in_one_sentence():
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


if __name__ == "__main__":
    main()
