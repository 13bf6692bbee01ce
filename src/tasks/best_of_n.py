"""Best-of-n sampling from the base model: the control that fine-tuning is drawn against, in one command.

`python -m src.run +experiment=best_of_n_hps` draws `pool` pictures a prompt, chooses by the trained reward, and writes
what the best of n = 1, 2, 4, ... scores with every reward: the unbiased estimate over the pool, at the exact KL
log n - (n - 1) / n.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from src.callbacks.gallery import picture_grid, save_png
from src.errors import BASE_IS_BROKEN, TrainingError, reward_is_broken
from src.files import make_folder
from src.loggers.tracker import log_row, tell_where_to_look
from src.metrics.best_of_n import best_of_n, best_of_n_kl
from src.metrics.intervals import bootstrap_mean, spread_within
from src.policy.diffusion import DiffusionPolicy
from src.progress import track
from src.prompts import PromptSets, check_prompts
from src.report.page import write_report
from src.report.runs import find_runs
from src.rewards.base import RewardModel
from src.runs.folder import open_run_dir, versions, write_json
from src.screen import show
from src.seeding import POOL_STREAM, seed_of
from src.tasks.building import build, build_loggers, build_rewards, trainer_of
from src.tasks.control import opened, write_arrays
from src.tasks.outcome import Row, curve_table
from src.tasks.session import POOL
from src.texts import warn_of_cut

GRID_PROMPTS, GRIDS = 32, ("first", "best")


def run(composed: DictConfig) -> dict[str, Any]:
    """The whole control; returns its last row."""
    return opened(composed, "best_of_n", control)


def control(cfg: dict[str, Any], folder: Path) -> Row:
    """Draws what is left of the pool, chooses from it, and writes what came of it."""
    lightning.seed_everything(cfg["seed"], verbose=False)
    trainer = trainer_of(cfg, logger=False)  # of which the device and the precision are wanted
    device = trainer.strategy.root_device
    policy: DiffusionPolicy = build(cfg["policy"]).to(device)
    sets: PromptSets = build(cfg["prompts"])
    prompts = sets.train
    judges = build_rewards(cfg["suite"]["judges"] or {})
    rewards = {name: model.to(device) for name, model in (build_rewards(cfg["suite"]["rewards"]) | judges).items()}
    check_prompts(rewards.values(), prompts, sets.places)
    warn_of_cut({"the policy": policy, **rewards}, prompts)
    open_run_dir(folder, cfg, checkpoint_bytes=0)
    print(f"run folder: {folder}", flush=True)
    loggers, started = build_loggers(cfg, folder, resumed_at=0), time.perf_counter()  # rows that a kill left go
    with trainer.precision_plugin.forward_context():  # the base as a run evaluates it
        score_pool(policy, rewards, cfg["train_reward"], prompts, cfg["pool"], cfg["seed"], folder / POOL)
    pool = Pool.read(folder / POOL, list(rewards))
    write_arrays(folder / "scores.npz", **{name: table.numpy() for name, table in pool.scores.items()})
    rows = curve(pool.scores, cfg["train_reward"], prompts, rewards[cfg["train_reward"]].queries)
    for row in rows:
        log_row(loggers, "evaluation", row, int(row["reward_queries"]))
    pool.save_grids(folder / "samples", prompts, int(rows[-1]["best_of_n/n"]))
    seconds = time.perf_counter() - started
    write_json(
        folder / "summary.json",
        {"experiment": cfg["name"], "final": rows[-1], "seconds": seconds, "versions": versions()},
    )
    shutil.rmtree(folder / POOL)  # it is in scores.npz and the grids
    firsts = {"n": [f"{row['best_of_n/n']:.0f}" for row in rows]}
    firsts["KL [nats]"] = [f"{row['kl/trajectory']:.2f}" for row in rows]
    show(curve_table(f"{cfg['name']}: gain over the base [base sd]", firsts, rows, list(rewards)))
    print(f"report: {write_report(find_runs([str(folder)]), folder / 'report.html')}")
    tell_where_to_look(loggers)
    return rows[-1]


@dataclass
class Pool:
    """Scores of the base's samples, one row a prompt, and for the first prompts the first and the best picture."""

    scores: dict[str, Float[Tensor, "prompt n"]]
    first: list[Tensor]
    best: list[Tensor]

    @classmethod
    def read(cls, folder: Path, rewards: list[str]) -> "Pool":
        """What `score_pool` wrote."""
        parts = [np.load(file) for file in sorted(folder.glob("*.npz"))]
        scores = {name: torch.stack([torch.from_numpy(part[f"scores/{name}"]) for part in parts]) for name in rewards}
        pictures = {kind: [torch.from_numpy(part[kind]) for part in parts if kind in part] for kind in GRIDS}
        return cls(scores, *pictures.values())

    def save_grids(self, folder: Path, prompts: list[str], n: int) -> None:
        """The first prompts' pictures before the choice, 00001.png, and the best of n after it."""
        make_folder(folder)
        for k, pictures in ((1, self.first), (n, self.best)):
            save_png(picture_grid(torch.stack(pictures), prompts[: len(pictures)]), folder / f"{k:05d}.png")


def score_pool(
    policy: DiffusionPolicy,
    rewards: dict[str, RewardModel],
    proxy: str,
    prompts: list[str],
    n: int,
    seed: int,
    folder: Path,
) -> None:
    """Draws n samples of each prompt and scores them with every reward; a file a prompt, those that are there stay."""
    make_folder(folder)
    for p, prompt in enumerate(track(prompts, f"best of {n}: base samples")):
        file = folder / f"{p:06d}.npz"
        if file.exists():
            continue
        repeated = [prompt] * n
        images = policy.sample(repeated, [seed_of(seed, p * n + i, POOL_STREAM) for i in range(n)]).images
        if not images.isfinite().all():
            raise TrainingError(f"a sampled picture of {prompt!r} is not finite; stopped. {BASE_IS_BROKEN}")
        found = {f"scores/{name}": reward.score(images, repeated).cpu().numpy() for name, reward in rewards.items()}
        broken = [name for name in rewards if not np.isfinite(found[f"scores/{name}"]).all()]
        if broken:
            mend = reward_is_broken(broken[0])
            raise TrainingError(f"the reward {broken[0]} is not finite for {prompt!r}; stopped. {mend}")
        if p < GRID_PROMPTS:
            chosen = images[[0, int(found[f"scores/{proxy}"].argmax())]].cpu().numpy()
            found |= dict(zip(GRIDS, chosen, strict=True))
        write_arrays(file, **found)


def curve(scores: dict[str, Float[Tensor, "prompt n"]], proxy: str, prompts: list[str], queries: int = 1) -> list[Row]:
    """A row for each n = 1, 2, 4, ... up to the pool; gains over the base's mean of the prompt, in base sd.

    Args:
        scores: of the pool's pictures, by reward.
        proxy: the reward that chooses.
        prompts: of the tables' rows.
        queries: rewards that a picture's score asks.
    """
    size = next(iter(scores.values())).shape[1]
    units = [prompt for prompt in prompts for _ in range(size)]
    spread = {name: spread_within(table.flatten().numpy(), units) or float("nan") for name, table in scores.items()}
    rows: list[Row] = []
    peak = dict.fromkeys(scores, float("-inf"))
    for n in (2**k for k in range(size.bit_length()) if 2**k <= size):
        kl = best_of_n_kl(n)
        cost = {"reward_queries": n * queries, "reward_gradients": 0}
        row: Row = {"iteration": n, "best_of_n/n": n, "kl/trajectory": kl, "kl/sqrt": kl**0.5} | cost
        for name, table in scores.items():
            chosen = np.array([best_of_n(scores[proxy][p], table[p], n) for p in range(len(prompts))])
            gain = bootstrap_mean((chosen - table.mean(1).numpy()) / spread[name], prompts)
            peak[name] = max(peak[name], gain.mean)
            row |= {
                f"eval/{name}/mean": float(chosen.mean()),
                f"eval/{name}/base_sd": spread[name],
                f"eval/{name}/gain": gain.mean,
                f"eval/{name}/gain_low": gain.low,
                f"eval/{name}/gain_high": gain.high,
                f"eval/{name}/below_peak": peak[name] - gain.mean,
            }
        for name in scores:
            row[f"eval/{name}/gap"] = row[f"eval/{proxy}/gain"] - row[f"eval/{name}/gain"]
        rows.append(row)
    return rows
