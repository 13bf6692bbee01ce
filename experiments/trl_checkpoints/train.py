"""Trains the miniature base by TRL 0.23.1's AlignPropTrainer, without this project's code: somebody else's checkpoints.

In an environment of its own (README.md): python experiments/trl_checkpoints/train.py OUT. Needs no GPU and no network.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizerFast
from trl import AlignPropConfig, AlignPropTrainer, DefaultDDPOStableDiffusionPipeline

WEIGHTS = Path(__file__).parents[2] / "src/mini/weights"
ANIMALS = (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").split()


def base_for_older_libraries(folder: Path) -> Path:
    """TRL's release wants transformers 4, which names a text encoder's tensors otherwise, and a fast tokenizer."""
    shutil.copytree(WEIGHTS / "base", folder)
    encoder = folder / "text_encoder/model.safetensors"
    renamed = {f"text_model.{key}": value for key, value in load_file(encoder).items()}
    save_file(renamed, encoder, metadata={"format": "pt"})
    index = folder / "model_index.json"
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace('"CLIPTokenizer"', '"CLIPTokenizerFast"'), encoding="utf-8")
    return folder


class HPS:
    """The miniature HPS-like reward, by transformers alone."""

    def __init__(self, folder: Path):
        self.clip = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizerFast.from_pretrained(folder)
        processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        self.mean, self.std = (torch.tensor(processor[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
        self.size, self.length = (
            self.clip.config.vision_config.image_size,
            self.clip.config.text_config.max_position_embeddings,
        )

    def __call__(self, images, prompts, metadata):
        if images.shape[-1] != self.size:
            images = F.interpolate(images.float(), size=(self.size, self.size), mode="bicubic", antialias=True)
        pixels = (images.float().clamp(0, 1) - self.mean) / self.std
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        seen = F.normalize(self.clip.get_image_features(pixel_values=pixels), dim=-1)
        meant = F.normalize(self.clip.get_text_features(**tokens), dim=-1)
        rewards = self.clip.logit_scale.exp() * (seen * meant).sum(-1)
        print(f"reward {rewards.mean():.3f}", flush=True)
        return rewards, {}


def main(out: Path) -> None:
    PartialState()
    random.seed(0)
    out.mkdir(parents=True)
    config = AlignPropConfig(
        num_epochs=61,
        save_freq=6,
        mixed_precision="no",
        allow_tf32=False,
        sample_num_steps=8,
        sample_guidance_scale=2.0,  # this release cannot train without guidance
        train_batch_size=16,
        train_gradient_accumulation_steps=1,
        train_learning_rate=1e-3,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=4,  # the gradient goes through the last four steps
        seed=0,
        project_kwargs={"project_dir": str(out), "automatic_checkpoint_naming": True, "total_limit": 50},
    )
    base = base_for_older_libraries(out / "base")
    pipeline = DefaultDDPOStableDiffusionPipeline(str(base), pretrained_model_revision=None, use_lora=True)
    AlignPropTrainer(config, HPS(WEIGHTS / "hps"), lambda: (random.choice(ANIMALS), {}), pipeline).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
