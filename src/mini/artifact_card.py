"""Writes the figures of the artifact classifier's card: `python -m src.mini.artifact_card`.

Of pictures that it has not learnt from, and of the base's samples: how many it takes for sound and, once they are
broken, for broken. Gold is asked at the end, for a comparison.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from src.files import read_text, user_path, write_json
from src.metrics.intervals import spread_within
from src.mini.artifact import held_out
from src.mini.corruptions import CORRUPTIONS, Pictures, corrupt
from src.mini.data import augment, load_emoji, to_float
from src.mini.evaluate import WEIGHTS, sample
from src.mini.gold import GoldAnnotator
from src.prompts import SIMPLE_ANIMALS
from src.rewards.artifact import ArtifactReward

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEVERITIES = [k / 10 for k in range(11)]
EACH = 16  # base samples a prompt


def by_severity(reward: ArtifactReward, images: Pictures) -> dict[str, list[Tensor]]:
    """Scores at each severity of each corruption."""
    n, prompts = len(images), [""] * len(images)
    return {
        kind: [
            reward.score(corrupt(images, torch.full((n,), s), [kind] * n, torch.Generator().manual_seed(8)), prompts)
            for s in SEVERITIES
        ]
        for kind in CORRUPTIONS
    }


def accuracy(scores: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Shares that are taken for what they are: sound untouched, broken at a severity of 0.2 and more."""
    sound = next(iter(scores.values()))[0]
    found = {kind: [(values < 0).float().mean().item() for values in steps] for kind, steps in scores.items()}
    shares = {kind: sum(steps[2:]) / len(steps[2:]) for kind, steps in found.items()}
    broken = torch.cat([values for steps in scores.values() for values in steps[2:]])
    above = torch.searchsorted(broken.sort().values, sound.contiguous()).float().mean().item() / len(broken)
    return {
        "pictures": len(sound),
        "sound": round((sound > 0).float().mean().item(), 3),
        "broken": round(sum(shares.values()) / len(shares), 3),
        "area under the curve": round(above, 3),
        "broken, by corruption": {kind: round(share, 3) for kind, share in shares.items()},
    }


def of_base(reward: ArtifactReward, gold: GoldAnnotator) -> dict[str, Any]:
    """The same of the base's samples; their moments; and the share of pairs of a prompt that gold orders alike."""
    prompts = list(SIMPLE_ANIMALS) * EACH
    images = sample(WEIGHTS / "base", prompts, steps=10, guidance=1.0)
    scores, utility = (model.score(images, prompts) for model in (reward, gold))
    ours, golds = (values.view(EACH, -1).T for values in (scores, utility))  # prompt x sample
    first, second = torch.triu_indices(EACH, EACH, 1)
    same = ((ours[:, first] > ours[:, second]) == (golds[:, first] > golds[:, second])).float().mean().item()
    moments = {"mean": scores.mean().item(), "std": float(spread_within(scores.numpy(), prompts))}
    return accuracy(by_severity(reward, images)) | {
        "moments": {key: round(value, 3) for key, value in moments.items()},
        "pairs ordered as by gold": round(same, 3),
    }


def draw(ladder: dict[str, list[Tensor]], curves: list[Path], target: Path) -> None:
    """Training loss, and mean log-odds of sound over severity for each corruption, as one picture."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    rows = [row for path in curves for row in csv.DictReader(read_text(path).splitlines())]
    losses = {int(row["step"]): float(row["loss"]) for row in rows}  # of steps made twice, after a stop, the last
    axes[0].plot(list(losses), list(losses.values()), linewidth=0.8)
    axes[0].set(xlabel="step", ylabel="training loss", yscale="log")
    for kind, steps in ladder.items():
        axes[1].plot(SEVERITIES, [values.mean().item() for values in steps], label=kind, linewidth=1)
    axes[1].set(xlabel="severity", ylabel="mean log-odds of sound [nats]")
    axes[1].legend(fontsize=7, ncols=2)
    figure.savefig(target, dpi=110)


def main() -> None:
    """Writes the figures, as JSON, and the picture into the card's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=user_path, default=Path("data/emoji"), help="the prepared pictures")
    parser.add_argument("--work-dir", type=user_path, default=Path("data/mini"), help="what training left")
    args = parser.parse_args()
    reward = ArtifactReward(str(WEIGHTS / "artifact"))
    unseen = held_out(load_emoji(args.data_dir).animals(), True)
    images = augment(to_float(unseen.images.repeat(10, 1, 1, 1)), torch.Generator().manual_seed(7))
    ladder = by_severity(reward, images)
    figures = {
        "unseen pictures": accuracy(ladder),
        "base samples": of_base(reward, GoldAnnotator(str(WEIGHTS / "gold"))),
    }
    draw(ladder, sorted((args.work_dir / "artifact").rglob("metrics.csv")), WEIGHTS / "card" / "artifact.png")
    write_json(WEIGHTS / "card" / "artifact.json", figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
