"""Writes the figures of the gold annotator's card: `python -m src.mini.gold_card`.

How utility falls along each corruption; base samples sorted by it, for a person to disagree with; best-of-n by each
reward; how far two versions of gold and the rewards agree on pairs. With `--suite mini_flow` only what depends on the
base: its moments and best-of-n, in flow.json.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import src.config  # noqa: F401  (registers the schema that configurations are checked against)
from src.callbacks.gallery import picture_grid
from src.files import user_path, write_json
from src.metrics.intervals import spread_within
from src.mini.corruptions import CORRUPTIONS, corrupt
from src.mini.data import augment, load_emoji, to_float
from src.mini.evaluate import WEIGHTS, sample
from src.mini.gold import GoldAnnotator
from src.mini.preferences import TEST_PICTURES, load_pool, pairs_of
from src.prompts import SIMPLE_ANIMALS
from src.report.runs import choice_among
from src.rewards.base import RewardModel
from src.tasks.best_of_n import Pool, curve, score_pool

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEVERITIES = [k / 10 for k in range(11)]
CONF = str(Path(__file__).parents[2] / "conf")


def ladder(gold: GoldAnnotator, data_dir: Path, target: Path, pictures: int = 300) -> dict[str, list[float]]:
    """Mean U of real pictures at each severity of each corruption."""
    emoji, rng = load_emoji(data_dir).animals(), torch.Generator().manual_seed(7)
    index = torch.randint(len(emoji.images), (pictures,), generator=rng)
    images = augment(to_float(emoji.images[index]), rng)
    prompts = [emoji.names[c] for c in emoji.concept[index].tolist()]
    rows = {}
    for kind in CORRUPTIONS:
        broken = (
            corrupt(images, torch.full((pictures,), s), [kind] * pictures, torch.Generator().manual_seed(8))
            for s in SEVERITIES
        )
        rows[kind] = [round(gold.score(step, prompts).mean().item(), 3) for step in broken]
    figure, axis = plt.subplots(figsize=(5, 3.2), constrained_layout=True)
    for kind, values in rows.items():
        axis.plot(SEVERITIES, values, label=kind, linewidth=1)
    axis.set(xlabel="severity", ylabel="mean U [nats]")
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(target, dpi=110)
    return rows


def base_moments(rewards: dict[str, RewardModel]) -> dict[str, dict[str, float]]:
    """Mean over, and sd within, prompts of sixteen base samples each; what ensembles standardise their members by."""
    prompts = list(SIMPLE_ANIMALS) * 16
    images = sample(WEIGHTS / "base", prompts, steps=10, guidance=1.0)
    scores = {name: reward.score(images, prompts) for name, reward in rewards.items()}
    return {
        name: {"mean": round(values.mean().item(), 3), "std": round(float(spread_within(values.numpy(), prompts)), 3)}
        for name, values in scores.items()
    }


def sorted_grid(gold: GoldAnnotator, target: Path) -> dict[str, float]:
    """Eighty base samples at evenly spaced ranks of U, worst first."""
    prompts = list(SIMPLE_ANIMALS) * 6
    images = sample(WEIGHTS / "base", prompts, steps=10, guidance=1.0)
    utility = gold.score(images, prompts)
    order = utility.argsort()[torch.linspace(0, len(prompts) - 1, 80).long()]
    labels = [f"{prompts[i]} {utility[i]:.1f}" for i in order.tolist()]
    picture_grid(images[order], labels, columns=16, size=80).quantize(128).save(target, optimize=True)
    return {"mean": utility.mean().item(), "sd": utility.std().item(), "max": utility.max().item()}


def base_pool(cfg: DictConfig, rewards: dict[str, RewardModel], gold: GoldAnnotator) -> Pool:
    """Scores of 256 pictures for each training prompt, drawn as in training."""
    with tempfile.TemporaryDirectory() as folder:
        judged = {**rewards, "gold": gold}
        prompts = list(SIMPLE_ANIMALS)
        score_pool(instantiate(cfg.policy), judged, next(iter(rewards)), prompts, 256, seed=0, folder=Path(folder))
        return Pool.read(Path(folder), list(judged))


def best_of_n_curves(cfg: DictConfig, pool: Pool, rewards: Iterable[str], target: Path) -> dict:
    """Gain of proxy and gold of the best of n = 1 ... 256 by each proxy, in base sd, over all training prompts."""
    prompts = list(SIMPLE_ANIMALS)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    table: dict[str, Any] = {f"{name}/of": choice_among(config, name) for name in rewards}
    figure, axis = plt.subplots(figsize=(5, 3.2), constrained_layout=True)
    for k, name in enumerate(rewards):
        rows = curve({key: pool.scores[key] for key in (name, "gold")}, name, prompts)
        table |= {"n": [row["best_of_n/n"] for row in rows], "kl": [round(row["kl/trajectory"], 3) for row in rows]}
        for label, key in (("proxy", name), ("gold", "gold")):
            gains = [round(row[f"eval/{key}/gain"], 3) for row in rows]
            table[f"{name}/{label}"] = gains
            line: Any = {"linestyle": "--" if label == "proxy" else "-", "color": f"C{k}", "label": f"{label}, {name}"}
            axis.plot([row["kl/sqrt"] for row in rows], gains, **line)
    axis.set(xlabel="sqrt(KL) [sqrt nats]", ylabel="gain of the best of n [base sd]")
    axis.legend(fontsize=7)
    figure.savefig(target, dpi=110)
    return table


def pool_moments(pool: Pool, rewards: Iterable[str]) -> dict[str, dict[str, float]]:
    """Mean over, and sd within, prompts."""
    return {
        name: {"mean": round(scores.mean().item(), 3), "std": round(scores.var(dim=1).mean().sqrt().item(), 3)}
        for name, scores in pool.scores.items()
        if name in rewards
    }


def agreement(judges: dict[str, RewardModel], num_steps: int, folder: str) -> dict[str, Any]:
    """Shares of test pairs that two models order alike: all, and clear ones by gold (|dU| above the median)."""
    pool = load_pool(str(WEIGHTS / "base"), str(WEIGHTS / "gold"), "test", TEST_PICTURES, num_steps, folder)
    prompts = pool.prompts(torch.arange(len(pool.images)))
    scores = {name: judge.score(to_float(pool.images), prompts) for name, judge in judges.items()}
    index = pairs_of(pool, seed=12345)[:4000]
    margins = {name: values[index[:, 0]] - values[index[:, 1]] for name, values in scores.items()}
    clear = margins["gold"].abs() > margins["gold"].abs().median()
    table = {}
    for a in margins:
        for b in margins:
            same = ((margins[a] > 0) == (margins[b] > 0)).float()
            table[f"{a} ~ {b}"] = {"all": round(same.mean().item(), 3), "clear": round(same[clear].mean().item(), 3)}
    return table


def main() -> None:
    """Measures gold and every proxy, and writes figures and curves into the card's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=user_path, default=Path("data/emoji"), help="the prepared pictures")
    parser.add_argument("--other-gold", help="folder of a second version, to compare with")
    parser.add_argument("--suite", choices=("mini", "mini_flow"), default="mini", help="whose base")
    args = parser.parse_args()
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", overrides=[f"suite={args.suite}"])
    rewards = {name: instantiate(reward, _convert_="all") for name, reward in cfg.suite.rewards.items()}
    gold = GoldAnnotator(str(WEIGHTS / "gold"))
    folder = WEIGHTS / "card"
    pool = base_pool(cfg, rewards, gold)
    if args.suite == "mini_flow":
        best_of_n = best_of_n_curves(cfg, pool, rewards, folder / "flow_best_of_n.png")
        tell(folder / "flow.json", {"base_moments": pool_moments(pool, rewards), "best_of_n": best_of_n})
        return
    judges = {"gold": gold, **rewards}
    if args.other_gold:
        judges["gold, other version"] = GoldAnnotator(args.other_gold)
    figures = {
        "ladder": ladder(gold, args.data_dir, folder / "gold_ladder.png"),
        "base_moments": base_moments(rewards),
        "base_samples": sorted_grid(gold, folder / "gold_sorted.png"),
        "best_of_n": best_of_n_curves(cfg, pool, rewards, folder / "best_of_n.png"),
        "agreement": agreement(judges, cfg.num_steps, "data/preferences"),
    }
    tell(folder / "gold.json", figures)


def tell(target: Path, figures: dict[str, Any]) -> None:
    """Into a file and on the screen."""
    write_json(target, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
