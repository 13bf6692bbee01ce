"""Points that evaluation goes through as it goes through a run's iterations, where nothing is trained.

Lightning's fit takes up one point after the other, the base first, so that evaluation, watch, logs and resuming are
training's own.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from src.callbacks.checkpoints import Checkpoints, harmless_contents
from src.callbacks.evaluation import CrossRewardEvaluation
from src.errors import BASE_IS_BROKEN, TrainingError, UserError, reward_is_broken
from src.learner import Learner
from src.policy.diffusion import DiffusionPolicy
from src.prompts import PromptSets, check_prompts
from src.rewards.base import RewardModel
from src.runs.resuming import command_to_resume
from src.tasks.building import build, build_loggers, build_rewards, trainer_faults, trainer_of
from src.tasks.finetune import load_checkpoint
from src.tasks.outcome import Row
from src.tasks.session import fit
from src.texts import warn_of_cut


@runtime_checkable
class Placed(Protocol):
    """A point of a series."""

    @property
    def label(self) -> str:
        """What tables and messages call it."""
        ...

    @property
    def at(self) -> int:
        """Its reward queries, or another number that rows have in their place."""
        ...


P = TypeVar("P", bound=Placed)


class Left(IterableDataset):
    """Numbers of a series' points that are not evaluated yet."""

    def __init__(self, series: "Series"):
        self.series = series

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.series.iteration, len(self.series.points)))


class Series(Learner, Generic[P]):
    """What callbacks ask of a finetuner, where an iteration takes up the next point.

    Args:
        policy: what is evaluated. base: what error messages call it before the first point.

    Attributes:
        remedy: what to do about a point that gives no pictures, where the base does.
    """

    remedy: str

    def __init__(
        self, policy: DiffusionPolicy, reward_name: str | None, members: list[str], points: Sequence[P], base: str
    ):
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.reward_name, self.reward_members, self.base = policy, reward_name, members, base
        self.points, self.iteration, self.reward_queries = points, 0, 0

    def take_up(self, number: int) -> None:
        """From now on the policy is what the point of this number makes of it, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define take_up")

    def columns(self, point: P | None) -> Row:
        """What the row of an evaluation says of a point, or of the base."""
        raise NotImplementedError(f"{type(self).__name__} does not define columns")

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Takes up the point of that number; callbacks do the rest."""
        self.take_up(batch)
        self.iteration, self.reward_queries = batch + 1, self.points[batch].at

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Left(self), batch_size=None)

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def heading(self, kind: str) -> Row:
        """As training has it; what is not known is left out."""
        row: Row = {"iteration": self.iteration, "reward_queries": self.reward_queries}
        if kind == "evaluation":
            row |= self.columns(self.points[self.iteration - 1] if self.iteration else None)
        return row

    def check_pictures(self, images: Tensor, where: str = "") -> None:
        self._check_finite("a sampled picture", images, self.remedy if self.iteration else BASE_IS_BROKEN)

    def check_scores(self, name: str, scores: Tensor, where: str = "") -> None:
        self._check_finite(f"the reward {name}", scores, reward_is_broken(name))

    def _check_finite(self, name: str, values: Tensor, mend: str) -> None:
        if not torch.isfinite(values).all():
            place = self.points[self.iteration - 1].label if self.iteration else f"the base {self.base}"
            raise TrainingError(f"{name} is not finite at {place}; stopped. {mend}")

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


def build_evaluation(
    cfg: dict[str, Any], folder: Path, policy: DiffusionPolicy, rewards: dict[str, RewardModel]
) -> CrossRewardEvaluation:
    """As in training, after every point, by the rewards and the suite's judges."""
    prompts: PromptSets = build(cfg["prompts"])
    judges = build_rewards(cfg["suite"]["judges"] or {})
    every = [*prompts.train, *prompts.held_out]
    check_prompts(judges.values(), every, prompts.places)
    warn_of_cut({"the policy": policy, **rewards, **judges}, every)
    return build(cfg["evaluation"] | {"every": 1}, _partial_=True)(
        run_dir=str(folder),
        rewards=rewards | judges,
        prompts=prompts,
        judge=next(iter(judges), None),
        judges=list(judges),
    )


def members_of(cfg: dict[str, Any], rewards: dict[str, RewardModel]) -> list[str]:
    """Names of the rewards that the trained one is made of, as far as that is known."""
    trained = rewards.get(cfg["train_reward"])
    return [name for name, model in rewards.items() if model in list(getattr(trained, "members", []))]


def go_through(
    cfg: dict[str, Any], folder: Path, series: Series, evaluation: CrossRewardEvaluation, others: Sequence[Any] = ()
) -> tuple[float, list[Logger]]:
    """Evaluates the base and the points that are left; returns the seconds that it took, and the loggers.

    Args:
        cfg: the checked configuration.
        folder: of the run; where it holds a checkpoint, the points that are left are those after it.
        series: at its base.
        evaluation: which looks at every point.
        others: callbacks beside the evaluation that have a state.
    """
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    progress = checkpoint["progress"] if checkpoint else {"iteration": -1, "stopped": False}
    done, points = progress["iteration"], len(series.points)
    print(f"run folder: {folder}", flush=True)
    loggers = build_loggers(cfg, folder, resumed_at=done)
    callbacks = [evaluation, *others, Told(evaluation), Checkpoints(str(folder), every=1)]
    trainer = trainer_of(cfg, limit_train_batches=points, logger=loggers, callbacks=callbacks)
    started = time.perf_counter()
    if checkpoint is None or (done < points and not progress["stopped"]):
        path = str(folder / "checkpoints" / "last.ckpt") if checkpoint else None
        with told_how_to_go_on(folder), harmless_contents(), trainer_faults():
            fit(trainer, series, ckpt_path=path, weights_only=True)
    else:
        series.on_load_checkpoint(checkpoint)
        for callback in (evaluation, *others):
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    return time.perf_counter() - started, loggers


@contextmanager
def told_how_to_go_on(folder: Path) -> Iterator[None]:
    """An error in the middle of a series ends with the command that goes on with it."""
    try:
        yield
    except (UserError, TrainingError) as error:
        if not (folder / "checkpoints" / "last.ckpt").exists():
            raise
        told = f"{error} What was evaluated before is kept: {command_to_resume(folder)} goes on."
        raise type(error)(told) from error


class Told(Callback):
    """A line for each point that is done, with the gains."""

    def __init__(self, evaluation: CrossRewardEvaluation):
        self.evaluation = evaluation

    def on_train_start(self, trainer: Trainer, pl_module: Series) -> None:
        if pl_module.iteration == 0:
            print(f"base evaluated; {len(pl_module.points)} to go", flush=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Series, outputs: Any, batch: Any, batch_idx: int) -> None:
        row, point = self.evaluation.history[-1], pl_module.points[pl_module.iteration - 1]
        every = [name for name in self.evaluation.rewards if name not in self.evaluation.judges]
        known = [pl_module.reward_name] if pl_module.reward_name else every
        names = [*known, *([self.evaluation.judge] if self.evaluation.judge else [])]
        gains = [f"{name} {row[key]:+.2f}" for name in names if (key := f"eval/{name}/gain") in row]
        print(f"{pl_module.iteration}/{len(pl_module.points)}  {point.label}: {', '.join(gains)}", flush=True)
