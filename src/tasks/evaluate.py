"""Evaluates weights of any origin as training does its own: `python -m src.run +experiment=evaluate weights=PATH`.

The base first, then every checkpoint of a series, or one checkpoint by degrees (scale=, aig=). Lightning's fit goes
through them as it does through a run's iterations, so that evaluation, watch, logs and resuming are training's own.
"""

import copy
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, isfinite
from torch.utils.data import DataLoader, IterableDataset

from src.callbacks.checkpoints import Checkpoints, harmless_contents
from src.callbacks.evaluation import CrossRewardEvaluation
from src.callbacks.watch import OveroptimizationWatch
from src.config import default_values
from src.errors import TrainingError, UserError
from src.files import user_path
from src.loggers.tracker import tell_where_to_look
from src.metrics.glossary import lookup
from src.policy.adoption import adopt
from src.policy.diffusion import DiffusionPolicy
from src.prompts import check_prompts
from src.ranks import Ranks
from src.report.page import write_report
from src.report.runs import find_runs
from src.rewards.base import RewardModel
from src.runs.folder import open_run_dir, versions, write_json
from src.screen import show
from src.tasks.building import build, build_callback, build_loggers, build_rewards, trainer_faults, trainer_of
from src.tasks.finetune import load_checkpoint
from src.tasks.members import Point, paths_of, points_of
from src.tasks.outcome import Row, kl_sentence, outcome_table
from src.tasks.session import fit, new_run, quieten, session, stored_run
from src.texts import warn_of_cut
from src.types import Metrics

FREE = (  # what may be chosen when a run of ours is evaluated; the rest is the run's own
    *(
        "weights",
        "scale",
        "aig",
        "steps",
        "queries_per_step",
        "evaluation",
        "prompts",
        "logger",
        "callbacks",
        "trainer",
    ),
    *(
        "run_dir",
        "name",
        "threads",
        "suite.rewards.",
        "suite.judges",
        "suite.tower.",
        "policy.path",
        "policy.sampling_",
    ),
)


def run(composed: DictConfig) -> dict[str, Any]:
    """One evaluation from composition to summary; returns the summary."""
    quieten()
    if composed.resume:
        cfg, folder = stored_run(composed)
    else:
        source = source_run(composed.weights)
        if source is not None:
            composed = as_in_run(source, composed, list(HydraConfig.get().overrides.task))
        cfg, folder = new_run(composed, "evaluate")
    with session(folder):
        return evaluate(cfg, folder)


def evaluate(cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Builds the policy at its base, and goes through the points that are left."""
    points = points_of(cfg)
    kinds = {point.weights.kind for point in points}
    if len(kinds) > 1:
        raise UserError("weights: some are LoRAs and some full UNets; evaluate them apart.")
    open_run_dir(folder, cfg, checkpoint_bytes=0)
    cfg = copy.deepcopy(cfg)  # what is stored is what was asked for, and the same command finds it again
    cfg["policy"]["finetune"], cfg["evaluation"]["every"] = points[0].weights.kind, 1
    rewards = build_rewards(cfg["suite"]["rewards"])
    series = build_series(cfg, points, rewards)
    evaluation, watches = build_evaluation(cfg, folder, series, rewards)
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    done = checkpoint["progress"]["iteration"] if checkpoint else -1
    print(f"run folder: {folder}", flush=True)
    callbacks = [evaluation, *watches, Told(evaluation, len(points)), Checkpoints(str(folder), every=1)]
    loggers = build_loggers(cfg, folder, resumed_at=done)
    trainer = trainer_of(cfg, limit_train_batches=len(points), logger=loggers, callbacks=callbacks)
    started = time.perf_counter()
    if done < len(points) and not (checkpoint and checkpoint["progress"]["stopped"]):
        path = str(folder / "checkpoints" / "last.ckpt") if checkpoint else None
        with harmless_contents(), trainer_faults():
            fit(trainer, series, ckpt_path=path, weights_only=True)
    else:
        series.on_load_checkpoint(checkpoint)
        for callback in (evaluation, *watches):
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    summary = summarise(cfg, folder, series, evaluation, watches, time.perf_counter() - started)
    tell_where_to_look(loggers)
    return summary


# ----------------------------------------------------------------------------------------- a run of ours, as it was run


def source_run(weights: Any) -> Path | None:
    """The run folder of ours that the first weights lie in, if they do."""
    if not isinstance(weights, str) or not weights:
        first = next(iter(weights or ()), "")
    else:
        first = next(iter(paths_of(weights)), "")
    folder = user_path(str(first))
    above = folder.parents[: 2 if folder.parent.name == "best" else 1]  # best/ema lies deeper
    return next((place for place in (folder, *above) if (place / "config.yaml").is_file()), None)


def as_in_run(folder: Path, composed: DictConfig, overrides: list[str]) -> DictConfig:
    """A run's stored configuration, as a task of evaluation, with what the command line says of that.

    Raises UserError on anything else that it says: the weights would be evaluated as something that they are not.
    """
    stored: Any = default_values() | OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    if stored["task"] not in ("finetune", "evaluate"):
        raise UserError(f"weights={composed.weights}: {folder} is a run of {stored['task']}, which has no policy.")
    stored |= {"task": "evaluate", "name": None, "run_dir": None, "objective": None, "resume": None}
    stored["trainer"] |= {"devices": 1, "strategy": "auto"}  # whatever it was trained on
    merged = OmegaConf.create(stored)
    wanted = OmegaConf.create(OmegaConf.to_container(composed, resolve=True, enum_to_str=True))
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key == "experiment":
            continue
        if not key.startswith(FREE):
            raise UserError(
                f"{override} is not for an evaluation of {folder}, which keeps the configuration that it was trained "
                "with; what may be chosen anew is how it is evaluated (evaluation.num_steps=, prompts=, scale=, ...)."
            )
        OmegaConf.update(merged, key, OmegaConf.select(wanted, key), merge=False, force_add=True)
    return merged


# ------------------------------------------------------------------------------------------------------------- building


class Left(IterableDataset):
    """Numbers of a series' points that are not evaluated yet."""

    def __init__(self, series: "Series"):
        self.series = series

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.series.iteration, len(self.series.points)))


class Series(LightningModule):
    """What callbacks ask of a finetuner, where an iteration takes up weights that somebody else has trained."""

    averaged = None  # weights beside the policy's own
    def __init__(self, policy: DiffusionPolicy, reward_name: str, members: list[str], points: list[Point], base: str):
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.reward_name, self.reward_members, self.base = policy, reward_name, members, base
        self.points, self.iteration, self.ranks = points, 0, Ranks()
        self.reward_queries = 0
        self.when = "after {:,} reward queries" if points[0].counted else "at checkpoint {:,}"

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Takes up the point of that number; callbacks do the rest."""
        point = self.points[batch]
        adopt(self.policy, point.weights, self.base, point.scale)
        self.policy.annealing = point.aig
        self.policy.to(self.device)
        self.iteration, self.reward_queries = batch + 1, point.at

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Left(self), batch_size=None)

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def record(self, kind: str, metrics: Metrics) -> Row:
        """One row, as training has it; what is not known of weights of others is left out."""
        row: Row = {"iteration": self.iteration, "reward_queries": self.reward_queries}
        if kind == "evaluation":
            point = self.points[self.iteration - 1] if self.iteration else None
            row["policy/scale"] = point.scale if point else 0.0
            if not self.points[0].counted:
                row["policy/checkpoint"] = self.reward_queries
            if point and point.aig is not None:
                row["policy/aig"] = point.aig
        row |= metrics
        for key in row:
            lookup(key)
        for logger in self.loggers:
            logger.log_metrics({"kind": kind} | row, step=self.iteration)  # type: ignore[arg-type]
        return row

    def check_pictures(self, images: Tensor, where: str = "") -> None:
        """Raises TrainingError on pictures that are no longer any."""
        self._check_finite("a sampled picture", images)

    def check_scores(self, name: str, scores: Tensor, where: str = "") -> None:
        """Raises TrainingError on what a reward says of pictures that are in order."""
        self._check_finite(f"the reward {name}", scores)

    def _check_finite(self, name: str, values: Tensor) -> None:
        if not isfinite(values).all():
            place = self.points[self.iteration - 1].label if self.iteration else f"the base {self.base}"
            raise TrainingError(f"{name} is not finite at {place}; stopped. The rows before it are intact.")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}  # weights lie where they came from

    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """See state_dict."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        stopped = bool(self.trainer.should_stop)
        checkpoint["progress"] = {
            "iteration": self.iteration,
            "reward_queries": self.reward_queries,
            "stopped": stopped,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["progress"]
        self.iteration, self.reward_queries = progress["iteration"], progress["reward_queries"]


def build_series(cfg: dict[str, Any], points: list[Point], rewards: dict[str, RewardModel]) -> Series:
    lightning.seed_everything(cfg["seed"], verbose=False)
    trained = rewards[cfg["train_reward"]]
    members = [name for name, model in rewards.items() if model in list(getattr(trained, "members", []))]
    return Series(build(cfg["policy"]), cfg["train_reward"], members, points, cfg["policy"]["path"])


def build_evaluation(
    cfg: dict[str, Any], folder: Path, series: Series, rewards: dict[str, RewardModel]
) -> tuple[CrossRewardEvaluation, list[OveroptimizationWatch]]:
    """As in training; the watch has nothing to follow where one checkpoint is looked at by degrees."""
    prompts = build(cfg["prompts"])
    judges = build_rewards(cfg["suite"]["judges"] or {})
    check_prompts(judges.values(), [*prompts.train, *prompts.held_out], prompts.places)
    warn_of_cut({"the policy": series.policy} | rewards | judges, [*prompts.train, *prompts.held_out])
    evaluation = build(cfg["evaluation"], _partial_=True)(
        run_dir=str(folder),
        rewards=rewards | judges,
        prompts=prompts,
        judge=next(iter(judges), None),
        judges=list(judges),
    )
    degrees = {(point.scale, point.aig) for point in series.points}
    callbacks = [build_callback(options, folder) for options in cfg["callbacks"].values()]
    return evaluation, [c for c in callbacks if isinstance(c, OveroptimizationWatch)] if len(degrees) == 1 else []


class Told(Callback):
    """A line for each point that is done, with the gains."""

    def __init__(self, evaluation: CrossRewardEvaluation, points: int):
        self.evaluation, self.points = evaluation, points

    def on_train_start(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:
        if pl_module.iteration == 0:
            print(f"base evaluated; {self.points} to go", flush=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        row, point = self.evaluation.history[-1], pl_module.points[pl_module.iteration - 1]
        names = [pl_module.reward_name, *([self.evaluation.judge] if self.evaluation.judge else [])]
        gains = [f"{name} {row[key]:+.2f}" for name in names if (key := f"eval/{name}/gain") in row]
        print(f"{pl_module.iteration}/{self.points}  {point.label}: {', '.join(gains)}", flush=True)


# ---------------------------------------------------------------------------------------------------------- summing up


def summarise(
    cfg: dict[str, Any],
    folder: Path,
    series: Series,
    evaluation: CrossRewardEvaluation,
    watches: Iterable[OveroptimizationWatch],
    seconds: float,
) -> dict[str, Any]:
    """Writes summary.json and the report, and prints the outcome."""
    final = evaluation.history[-1]
    summary = {
        "experiment": cfg["name"],
        "train_reward": series.reward_name,
        "points": [point.label for point in series.points],
        "final": final,
        "evaluation_seconds": evaluation.seconds,
        "wall_seconds_of_this_session": seconds,
        "versions": versions(),
    }
    last = series.points[series.iteration - 1]
    show(outcome_table(final, series.reward_name, f"{cfg['name']}: {last.label}"))
    print(kl_sentence(final))
    for watch in watches:
        kept = next((point for point in series.points if point.at == watch.best), None)
        ship = "the base" if kept is None else kept.label
        summary["ship"] = ship
        print(f"watch: {watch.sentence()}\nto ship, by the watch: {ship}")
    write_json(folder / "summary.json", summary)  # before the report, for which it tells that the run is finished
    source = source_run(cfg["weights"])
    beside = [str(source)] if source is not None and (source / "metrics.jsonl").exists() else []
    print(f"pictures: {folder / 'samples'}   metrics: {folder / 'metrics.jsonl'}")
    print(f"report: {write_report(find_runs([str(folder), *beside]), folder / 'report.html')}")
    return summary
