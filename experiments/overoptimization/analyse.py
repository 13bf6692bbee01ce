"""Does overoptimization happen in the miniature world, and is it seen?

`python experiments/overoptimization/analyse.py` writes results.csv, curves.png and, of the first seed, pictures
before training, at gold's peak and at the end, and line.csv: gold along the straight line from the base's weights to
the final ones. With --other-gold, the folder of a second version of gold, it also asks that one about fresh pictures by
the base and by the final weights.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from src.errors import told_in_one_sentence
from src.metrics.intervals import spread_within
from src.mini.evaluate import WEIGHTS
from src.mini.gold import GoldAnnotator
from src.prompts import SIMPLE_ANIMALS
from src.report.runs import Run, find_runs
from src.report.study import table
from src.report.study_plots import draw_curves

HERE = Path(__file__).parent
PROMPTS = list(SIMPLE_ANIMALS) * 4
PANELS = {
    "trained reward, gain [base sd]": ("reward_queries", "eval/hps/gain"),
    "gold, gain [base sd]": ("reward_queries", "eval/gold/gain"),
    "gold on held-out prompts, gain [base sd]": ("reward_queries", "held_out/gold/gain"),
    "independent classifier, top-1 accuracy": ("reward_queries", "eval/classifier_top1/mean"),
}


def at_peak(run: Run) -> int:
    gold = run.series("eval/gold/gain")
    return gold.index(max(gold))


def pictures(run: Run) -> None:
    """The run's grids, the base's first, made small enough to be committed."""
    chosen = {"start": 0, "peak": at_peak(run), "end": len(run.evaluations) - 1}
    for name, k in chosen.items():
        grid = Image.open(run.folder / "samples" / f"{run.evaluations[k]['iteration']:05d}.png").convert("RGB")
        grid.quantize(128).save(HERE / f"{name}.png", optimize=True)


def utilities(run: Run, judges: dict[str, GoldAnnotator], share: float) -> dict[str, torch.Tensor]:
    """By each judge, of four fresh pictures a prompt by weights at `share` of the way from the base's to the run's."""
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "base", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    final = UNet2DConditionModel.from_pretrained(run.folder / "unet", torch_dtype=torch.float32).state_dict()
    start = pipeline.unet.state_dict()
    pipeline.unet.load_state_dict({name: torch.lerp(start[name], final[name], share) for name in start})
    rng = torch.Generator().manual_seed(1)
    call = {"num_inference_steps": run.config["num_steps"], "guidance_scale": 1.0, "eta": 1.0, "output_type": "pt"}
    images = pipeline(PROMPTS, generator=rng, **call).images.float()
    return {name: judge.score(images, PROMPTS) for name, judge in judges.items()}


def line(run: Run) -> None:
    """Writes mean U of gold along the line."""
    gold = {"gold": GoldAnnotator(str(WEIGHTS / "gold"))}
    shares = [k / 10 for k in range(11)]
    rows = [(share, utilities(run, gold, share)["gold"].mean().item()) for share in shares]
    found = pd.DataFrame(rows, columns=["share", "utility"])
    found.to_csv(HERE / "line.csv", index=False, float_format="%.4g")
    print(found.round(2).T.to_string())


def second_opinion(run: Run, judges: dict[str, GoldAnnotator]) -> dict[str, float]:
    """Gain of the final weights by each judge, base sd."""
    before, after = (utilities(run, judges, share) for share in (0.0, 1.0))
    return {
        name: ((after[name] - before[name]).mean() / spread_within(before[name].numpy(), PROMPTS)).item()
        for name in judges
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=["multirun/ddpo_hps_sweep"])
    parser.add_argument("--other-gold")
    args = parser.parse_args()
    runs = find_runs(args.runs)
    found = table(runs, lambda config: config["name"])
    by_seed = {run.config["seed"]: run for run in runs}
    top1 = {seed: run.series("eval/classifier_top1/mean") for seed, run in by_seed.items()}
    found.insert(5, "top1_start", [top1[seed][0] for seed in found.seed])
    found.insert(6, "top1_highest", [max(top1[seed]) for seed in found.seed])
    if args.other_gold:
        judges = {"gold": GoldAnnotator(str(WEIGHTS / "gold")), "other gold": GoldAnnotator(args.other_gold)}
        opinions = {seed: second_opinion(run, judges) for seed, run in by_seed.items()}
        for name in judges:
            found[f"fresh pictures, {name}"] = [opinions[seed][name] for seed in found.seed]
    found = found.dropna(axis=1, how="all")  # what is a critic's
    found.to_csv(HERE / "results.csv", index=False, float_format="%.4g")
    draw_curves({"DDPO on hps": runs}, PANELS, HERE / "curves.png")
    pictures(by_seed[min(by_seed)])
    line(by_seed[min(by_seed)])
    print(found.round(3).T.to_string())


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
