"""Evaluates weights of any origin as training does its own: `python -m src.run +experiment=evaluate weights=PATH`.

The base first, then every checkpoint of a series, or one checkpoint by degrees (scale=, aig=).
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.callbacks.evaluation import CrossRewardEvaluation
from src.callbacks.watch import OveroptimizationWatch
from src.config import default_values, needed_keys
from src.errors import UserError
from src.files import user_path
from src.loggers.tracker import tell_where_to_look
from src.policy.adoption import adopt, check_fit
from src.progress import track
from src.report.headline import too_few
from src.report.page import write_report
from src.report.runs import find_runs, read_run
from src.report.series import never_rose, series_table
from src.report.watching import shipment
from src.runs.folder import open_run_dir, read_config, versions, write_json
from src.screen import quieten, show
from src.tasks.building import build, build_callback, build_rewards
from src.tasks.members import Point, paths_of, points_of
from src.tasks.outcome import Row, kl_sentence, outcome_table
from src.tasks.series import Series, build_evaluation, go_through, members_of
from src.tasks.session import new_run, session, stored_run

AS_OTHERS = "copy the weights to a folder without one, to evaluate them as weights of others"
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
        cfg, folder = new_run(asked(composed), "evaluate")
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
    cfg["policy"]["finetune"] = points[0].weights.kind
    lightning.seed_everything(cfg["seed"], verbose=False)
    policy = build(cfg["policy"])
    for weights in track(dict.fromkeys(point.weights for point in points), "checking weights"):
        check_fit(policy, weights, cfg["policy"]["path"])
    rewards = build_rewards(cfg["suite"]["rewards"])
    series = WeightSeries(policy, cfg["train_reward"], members_of(cfg, rewards), points, cfg["policy"]["path"])
    evaluation = build_evaluation(cfg, folder, policy, rewards)
    watches = build_watches(cfg, folder, series)
    seconds, loggers = go_through(cfg, folder, series, evaluation, watches)
    summary = summarise(cfg, folder, series, evaluation, watches, seconds)
    tell_where_to_look(loggers)
    return summary


# ----------------------------------------------------------------------------------------- a run of ours, as it was run


def asked(composed: DictConfig) -> DictConfig:
    """What a command asks for: of weights that lie in a run of ours, an evaluation as that run was configured."""
    source = source_run(composed.weights)
    return composed if source is None else as_in_run(source, composed, list(HydraConfig.get().overrides.task))


def source_run(weights: Any) -> Path | None:
    """The run folder of ours that the first weights lie in, if they do."""
    if not isinstance(weights, str) or not weights:
        first = next(iter(weights or ()), "")
    else:
        first = next(iter(paths_of(weights)), "")
    folder = user_path(str(first))
    kept = (k for k, place in enumerate(folder.parents[:2]) if place.name in ("best", "weights"))
    above = folder.parents[: next(kept, -1) + 2]  # best/ema and weights/checkpoint-20 lie deeper than best/
    return next((place for place in (folder, *above) if (place / "config.yaml").is_file()), None)


def as_in_run(folder: Path, composed: DictConfig, overrides: list[str]) -> DictConfig:
    """A run's stored configuration, as a task of evaluation, with what the command line says of that.

    Raises UserError on anything else that it says: the weights would be evaluated as something that they are not.
    """
    stored = default_values() | read_config(folder, needed_keys(), AS_OTHERS)
    if stored["task"] not in ("finetune", "evaluate"):
        raise UserError(f"weights={composed.weights}: {folder} is a run of {stored['task']}, which has no policy.")
    stored |= {"task": "evaluate", "name": None, "objective": None, "resume": None}
    stored["run_dir"] = composed.run_dir  # a sweep has set it
    stored["threads"] = stored["threads"] if composed.threads is None else composed.threads
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


class WeightSeries(Series[Point]):
    """An iteration takes up weights that somebody else has trained."""

    remedy = "The base is in order: leave these weights out, or give an earlier checkpoint or a smaller scale=."

    @property
    def when(self) -> str:
        if self.points[0].counted:
            return super().when
        paths = {point.weights.path for point in self.points}
        if len(paths) == 1:  # a number would say nothing
            return f"at {Path(paths.pop()).name.replace('{', '{{').replace('}', '}}')}"
        return "at checkpoint {:,}"

    def take_up(self, number: int) -> None:
        point = self.points[number]
        adopt(self.policy, point.weights, self.base, point.scale)
        self.policy.annealing = point.aig
        self.policy.to(self.device)

    def columns(self, point: Point | None) -> Row:
        found: Row = {"policy/scale": point.scale if point else 0.0}
        if not self.points[0].counted:
            found["policy/checkpoint"] = self.reward_queries
        if point and point.aig is not None:
            found["policy/aig"] = point.aig
        return found


def build_watches(cfg: dict[str, Any], folder: Path, series: WeightSeries) -> list[OveroptimizationWatch]:
    """As in training; there is nothing to follow where one checkpoint is looked at by degrees."""
    degrees = {(point.scale, point.aig) for point in series.points}
    callbacks = [build_callback(options, folder) for options in cfg["callbacks"].values()]
    return [c for c in callbacks if isinstance(c, OveroptimizationWatch)] if len(degrees) == 1 else []


# ---------------------------------------------------------------------------------------------------------- summing up


def _named(points: Sequence[Point], number: int) -> str:
    """The label of a point, counted from 1; with its scale where there are other scales beside it."""
    point = points[number - 1]
    whole = point.aig is None and point.scale == 1 and any(other.scale != 1 for other in points)
    return f"{point.label} at scale 1" if whole else point.label


def summarise(
    cfg: dict[str, Any],
    folder: Path,
    series: WeightSeries,
    evaluation: CrossRewardEvaluation,
    watches: Iterable[OveroptimizationWatch],
    seconds: float,
) -> dict[str, Any]:
    """Writes summary.json and the report, and prints the outcome."""
    final, run = evaluation.history[-1], read_run(folder)
    assert run is not None  # it has just been evaluated
    summary: dict[str, Any] = {
        "experiment": cfg["name"],
        "train_reward": series.reward_name,
        "points": [point.label for point in series.points],
        "final": final,
        "evaluation_seconds": evaluation.seconds,
        "wall_seconds_of_this_session": seconds,
        "versions": versions(),
    }
    told = shipment(run)
    if told is not None:
        summary["ship"] = _named(series.points, told.index) if told.index else "the base"
    for watch in watches:
        summary |= watch.fell
    last = series.points[series.iteration - 1]
    if len(series.points) > 1:
        show(series_table(run))
    place = f"{cfg['name']}, the last of {len(series.points)}" if len(series.points) > 1 else cfg["name"]
    show(outcome_table(final, series.reward_name, f"{place}: {last.label}"))
    print(kl_sentence(final))
    for watch in watches:
        print(f"watch: {watch.sentence()}")
    if told is not None and (run.trained is not None or not watches):  # of an unknown reward the watch has said all
        print(f"to ship, by the watch: {summary['ship']}")
    if doubt := never_rose(run):
        print(f"warning: {doubt}")
    if few := too_few(run):
        print(f"warning: {few}")
    write_json(folder / "summary.json", summary)  # before the report, for which it tells that the run is finished
    source = source_run(cfg["weights"])
    beside = [str(source)] if source is not None and (source / "metrics.jsonl").exists() else []
    print(f"pictures: {folder / 'samples'}   metrics: {folder / 'metrics.jsonl'}")
    print(f"report: {write_report(find_runs([str(folder), *beside]), folder / 'report.html')}")
    return summary
