"""Ours against TRL, on the same pipeline, reward and number of optimizer steps: `python -m benchmarks.peers`

DDPO on the shipped base, 64 pictures of 10 steps and one optimizer step an iteration, guidance 2, float32, all cores.
The two take turns, a process each, and the first iteration of a process is not counted. TRL is installed into an
environment of its own in a temporary folder (`--python` names one that is there): 2 GB of disk and a package index.
Prints JSON. Let nothing else run meanwhile.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "src/mini/weights"
TRL = ("trl==0.23.1", "transformers>=4.57,<5", "diffusers==0.35.2", "peft", "pillow", "numpy")
PICTURES, PER_PROMPT, STEPS, GUIDANCE, RATE = 64, 8, 10, 2.0, 2e-5
ANIMALS = ("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird")


def our_seconds(iterations: int, overrides: list[str]) -> list[float]:
    """Of each iteration, with nothing around it: no evaluation, no logs, no checkpoints."""
    import lightning

    from benchmarks.sd14 import composed
    from src.config import check
    from src.prompts import PromptData
    from src.screen import quieten
    from src.tasks.building import build, build_finetuner

    class Ends(lightning.Callback):
        def __init__(self) -> None:
            self.at: list[float] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.at.append(time.perf_counter())

    quieten()
    chosen = [f"samples_per_iteration={PICTURES}", f"samples_per_prompt={PER_PROMPT}", f"num_steps={STEPS}"]
    chosen += [f"guidance={GUIDANCE}", f"optimizer.lr={RATE}", "train_reward=hps", *overrides]
    cfg = check(composed(["+experiment=ddpo", *chosen]))
    finetuner, _ = build_finetuner(cfg)
    ends = Ends()
    trainer = build(cfg["trainer"], limit_train_batches=1 + iterations, logger=False, callbacks=[ends])
    prompts = build(cfg["prompts"]).train
    trainer.fit(finetuner, PromptData(prompts, cfg["samples_per_iteration"], cfg["samples_per_prompt"], 0))
    return [later - earlier for earlier, later in itertools.pairwise(ends.at)]


def trl_seconds(iterations: int) -> list[float]:
    """Of each of TRL's steps."""
    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    PartialState()  # TRL warns before it has set up what it warns by
    config = DDPOConfig(
        exp_name="peer",
        sample_num_steps=STEPS,
        sample_eta=1.0,
        sample_guidance_scale=GUIDANCE,
        sample_batch_size=PICTURES,
        sample_num_batches_per_epoch=1,
        train_batch_size=PICTURES,
        train_cfg=True,
        train_learning_rate=RATE,
        train_clip_range=2e-3,
        mixed_precision="no",
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_min_count=PER_PROMPT,
        save_freq=10**6,
    )
    asked = itertools.cycle(name for name in ANIMALS for _ in range(PER_PROMPT))
    pipeline = DefaultDDPOStableDiffusionPipeline(str(WEIGHTS / "base"), use_lora=False)
    trainer = DDPOTrainer(config, plain_clip_reward(WEIGHTS / "hps"), lambda: (next(asked), {}), pipeline)
    trainer.sd_pipeline.set_progress_bar_config(disable=True)
    at = [time.perf_counter()]
    for epoch in range(1 + iterations):
        trainer.step(epoch, epoch)
        at.append(time.perf_counter())
    return [later - earlier for earlier, later in itertools.pairwise(at)][1:]


def plain_clip_reward(folder: Path) -> Callable[..., tuple[Any, dict]]:
    """What src.rewards.clip computes, of transformers alone: pictures [b, 3, h, w] in [0, 1], prompts -> scores [b]."""
    import torch
    import torch.nn.functional as F
    from transformers import CLIPModel, CLIPTokenizer

    clip, words = CLIPModel.from_pretrained(folder).float().eval(), CLIPTokenizer.from_pretrained(folder)
    side, length = clip.config.vision_config.image_size, clip.config.text_config.max_position_embeddings
    unit = lambda features: F.normalize(getattr(features, "pooler_output", features), dim=-1)  # noqa: E731  # of 5, of 4

    @torch.no_grad()
    def score(images: Any, prompts: tuple[str, ...], _: Any) -> tuple[Any, dict]:
        pixels = F.interpolate(images.float(), side, mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
        ids = words(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        cosine = unit(clip.get_image_features(pixels)) * unit(clip.get_text_features(ids.input_ids))
        return clip.logit_scale.exp() * cosine.sum(-1), {}

    return score


def in_turns(python: Path, rounds: int, iterations: int, overrides: list[str]) -> dict[str, Any]:
    """Medians, and the ratio of each round."""
    script, seconds = str(Path(__file__)), {"ours": [], "trl": []}  # type: dict[str, list[list[float]]]
    for _ in range(rounds):
        for name, command in (
            ("ours", [sys.executable, "-m", "benchmarks.peers", "--worker", "ours", *overrides]),
            ("trl", [str(python), script, "--worker", "trl"]),
        ):
            asked = [*command, "--iterations", str(iterations)]
            done = subprocess.run(asked, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8")
            seconds[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: [statistics.median(each) for each in known] for name, known in seconds.items()}
    ratios = [theirs / ours for ours, theirs in zip(*medians.values(), strict=True)]
    return {
        "processor": platform.processor() or platform.machine(),
        "overrides": overrides,
        "seconds_an_iteration": {
            name: statistics.median(itertools.chain.from_iterable(known)) for name, known in seconds.items()
        },
        "trl_over_ours": statistics.median(ratios),
        "trl_over_ours_by_round": ratios,
        "all_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of ours: trainer.precision=bf16-mixed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--iterations", type=int, default=4, help="counted in a turn")
    parser.add_argument("--python", type=Path, help="interpreter of an environment with TRL 0.23.1")
    parser.add_argument("--worker", choices=("ours", "trl"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if min(asked.rounds, asked.iterations) < 1:
        parser.error("--rounds and --iterations must be at least 1.")
    if asked.worker:
        warnings.simplefilter("ignore")
        own = asked.worker == "ours"
        print(json.dumps(our_seconds(asked.iterations, asked.overrides) if own else trl_seconds(asked.iterations)))
        return
    from benchmarks.environments import new_environment

    with tempfile.TemporaryDirectory() as scratch:
        python = asked.python or new_environment(Path(scratch) / "trl", TRL)
        print(json.dumps(in_turns(python, asked.rounds, asked.iterations, asked.overrides), indent=2))


if __name__ == "__main__":
    main()
