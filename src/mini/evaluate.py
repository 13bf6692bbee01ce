"""How good is the miniature base model? `python -m src.mini.evaluate` prints it, by plain diffusers and a classifier.

The classifier was trained on the real pictures only and serves no other purpose. Reported: the share of samples whose
prompted animal it puts first, and among its first five; and how different the samples of one prompt are, as mean
pairwise distance of the classifier's pooled features, relative to augmented real pictures of the same concepts.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor
from transformers import ResNetForImageClassification

from src.files import read_json, user_path
from src.mini.data import EmojiData, augment, load_emoji, to_float
from src.prompts import SIMPLE_ANIMALS

WEIGHTS = Path(__file__).parent / "weights"


class Judge:
    """The independent classifier and its features."""

    def __init__(self, folder: Path = WEIGHTS / "classifier"):
        self.model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.names = [self.model.config.id2label[k] for k in range(self.model.config.num_labels)]

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b concept"]:
        """Of pictures in [0, 1], before the softmax over concepts."""
        return torch.cat([self.model(part * 2 - 1).logits for part in images.split(128)])

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit-length pooled features."""
        pooled = [self.model.resnet(part * 2 - 1).pooler_output.flatten(1) for part in images.split(128)]
        return F.normalize(torch.cat(pooled), dim=-1)

    def target(self, prompts: list[str]) -> Int[Tensor, " b"]:
        """The number of the concept that each prompt names."""
        return torch.tensor([self.names.index(prompt) for prompt in prompts])

    def accuracy(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> tuple[float, float]:
        """Shares of pictures with the prompted concept first, and among the first five."""
        ranked = self.logits(images).topk(5).indices == self.target(prompts)[:, None]
        return ranked[:, 0].float().mean().item(), ranked.any(1).float().mean().item()

    def spread(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> float:
        """Mean pairwise feature distance within a prompt, averaged over prompts."""
        features = self.features(images)
        groups = [features[[p == prompt for p in prompts]] for prompt in dict.fromkeys(prompts)]
        return torch.stack([torch.pdist(group).mean() for group in groups]).mean().item()


def sample(
    folder: Path, prompts: list[str], steps: int, guidance: float, seed: int = 0, batch: int = 64
) -> Float[Tensor, "b 3 h w"]:
    """Pictures by plain diffusers: DDIM with eta 1, or the flow's ODE."""
    pipeline = load(folder)
    pipeline.set_progress_bar_config(disable=True)
    own = {"eta": 1.0} if isinstance(pipeline, StableDiffusionPipeline) else {}
    parts = []
    for i in range(0, len(prompts), batch):
        rng = torch.Generator().manual_seed(seed + i)
        call = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
        parts.append(pipeline(prompts[i : i + batch], generator=rng, **call, **own).images.float())
    return torch.cat(parts)


def load(folder: Path) -> DiffusionPipeline:
    """As diffusers loads it; a Stable Diffusion 3 without a T5 must be told so."""
    flow = read_json(folder / "model_index.json")["_class_name"] == StableDiffusion3Pipeline.__name__
    without = {"text_encoder_3": None, "tokenizer_3": None} if flow else {}
    return DiffusionPipeline.from_pretrained(folder, **without)


def real(emoji: EmojiData, names: list[str], each: int, seed: int) -> Float[Tensor, "b 3 h w"]:
    """Augmented real pictures, `each` of every named concept."""
    rng = torch.Generator().manual_seed(seed)
    index = []
    for name in names:
        own = torch.nonzero(emoji.concept == emoji.names.index(name)).flatten()
        index.append(own[torch.randint(len(own), (each,), generator=rng)])
    return augment(to_float(emoji.images[torch.cat(index)]), rng)


def evaluate(folder: Path, data_dir: Path, steps: int, guidance: float, each: int) -> dict[str, float]:
    """How well a pipeline's samples are recognised and how far they spread, beside real pictures of the same prompts.

    Top-1 and top-5 are shares of samples; `relative_spread` is 1 where samples vary as real pictures do.
    """
    judge = Judge()
    prompts = [name for name in SIMPLE_ANIMALS for _ in range(each)]
    generated = sample(folder, prompts, steps, guidance)
    pictures = real(load_emoji(data_dir).animals(), list(SIMPLE_ANIMALS), each, seed=1)
    top1, top5 = judge.accuracy(generated, prompts)
    return {
        "samples": len(prompts),
        "concepts": len(judge.names),
        "real_top1": judge.accuracy(pictures, prompts)[0],
        "top1": top1,
        "top5": top5,
        "relative_spread": judge.spread(generated, prompts) / judge.spread(pictures, prompts),
    }


def main() -> None:
    """Prints the figures of a pipeline as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=WEIGHTS / "base", help="a pipeline folder")
    parser.add_argument("--data-dir", type=user_path, default=Path("data/emoji"), help="the prepared pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--samples-per-prompt", type=int, default=10)
    args = parser.parse_args()
    result = evaluate(args.folder, args.data_dir, args.steps, args.guidance, args.samples_per_prompt)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
