"""Writes the model card of the miniature base models: figures measured here and now, curves, a grid of samples."""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from src.callbacks.gallery import picture_grid
from src.files import read_text, user_path, write_json
from src.mini.evaluate import WEIGHTS, evaluate, sample
from src.prompts import SIMPLE_ANIMALS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STAGES = {"": ("vae", "clip", "matching", "unet", "classifier", "gold"), "flow_": ("flow",)}  # by figure


def loss_curves(work_dir: Path, stages: Sequence[str], target: Path) -> None:
    """One panel a stage, from the CSV files that its training left; none where some stages were trained elsewhere."""
    if any(not list((work_dir / stage).rglob("metrics.csv")) for stage in stages):
        return
    size = (2.5 * max(2, len(stages)), 2.6)
    figure, axes = plt.subplots(1, len(stages), figsize=size, constrained_layout=True, squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        files = sorted((work_dir / stage).rglob("metrics.csv"))
        rows = [row for path in files for row in csv.DictReader(read_text(path).splitlines())]
        axis.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], linewidth=0.8)
        axis.set(title=stage, xlabel="step", yscale="log")
    axes[0][0].set_ylabel("training loss")
    figure.savefig(target, dpi=110)


def main() -> None:
    """Draws loss curves and sample grids, and writes what they are measured by, into the card's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=user_path, default=Path("data/mini"))
    parser.add_argument("--data-dir", type=user_path, default=Path("data/emoji"))
    args = parser.parse_args()
    folder = WEIGHTS / "card"
    folder.mkdir(exist_ok=True)
    for name, stages in STAGES.items():
        loss_curves(args.work_dir, stages, folder / f"{name}loss_curves.png")
    prompts, figures = list(SIMPLE_ANIMALS) * 2, {}
    for base, name in (("base", ""), ("flow", "flow_")):
        if not (WEIGHTS / base).is_dir():
            continue  # not trained yet
        images = sample(WEIGHTS / base, prompts, steps=20, guidance=1.0)
        grid = picture_grid(images, prompts, columns=15, size=96)
        grid.quantize(128).save(folder / f"{name}samples.png", optimize=True)
        for steps in (10, 20):
            figures[f"{name}{steps}_steps"] = evaluate(WEIGHTS / base, args.data_dir, steps, guidance=1.0, each=10)
    write_json(folder / "figures.json", figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
