"""What controls without training share: the base, drawn with a reward's say, measured as a run of training is.

A control's settings (how many candidates, which temperature) make its curve. The base's pictures come first, then those
of every setting, of the prompts and seeds that evaluations of training have, so that gains are those over the very same
pictures. `reward_queries` and `reward_gradients` of a row are what one picture costs.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from src.callbacks.evaluation import NO_SPREAD, CrossRewardEvaluation
from src.errors import TrainingError, UserError, reward_is_broken
from src.files import make_folder, remove, write_bytes
from src.loggers.tracker import tell_where_to_look
from src.policy.diffusion import DiffusionPolicy
from src.progress import track
from src.report.page import write_report
from src.report.runs import find_runs
from src.rewards.base import RewardModel
from src.runs.folder import open_run_dir, versions, write_json
from src.screen import quieten, show
from src.seeding import POOL_STREAM, seed_of
from src.tasks.building import build, build_rewards
from src.tasks.members import numbers
from src.tasks.outcome import Row, curve_table
from src.tasks.series import Series, build_evaluation, go_through, members_of
from src.tasks.session import POOL, new_run, session, stored_run
from src.types import Rollout

Latents = Float[Tensor, "b c h w"]
WITHOUT_IT = "The base is in order: start anew without this setting."  # where drawing at one gives no pictures


@dataclass(frozen=True)
class Setting:
    """One way of drawing."""

    label: str
    at: int  # reward queries a picture
    columns: Row  # what else the row of its evaluation says
    options: dict[str, Any] = field(default_factory=dict)  # of the control's `draw`


class Control:
    """A way of drawing from the base that a reward has a say in."""

    needs_gradient = False
    seed = 0  # of the run: another one draws other trajectories beside the pictures' own

    def settings(self, num_steps: int, queries: int) -> list[Setting]:
        """The points of the curve, where a trajectory has so many steps, and a picture's score asks so many rewards."""
        raise NotImplementedError(f"{type(self).__name__} does not define settings")

    def base_columns(self) -> Row:
        """What the base's row says, which costs nothing."""
        return {"reward_gradients": 0}

    def draw(
        self, policy: DiffusionPolicy, reward: "Scorer", prompts: list[str], seeds: list[int], **options: Any
    ) -> Latents:
        """x_0 of a picture for each prompt."""
        raise NotImplementedError(f"{type(self).__name__} does not define draw")

    def width(self, **options: Any) -> int:
        """Trajectories that are drawn for a picture."""
        raise NotImplementedError(f"{type(self).__name__} does not define width")


@dataclass
class Scorer:
    """The reward that has the say.

    Args:
        unit: its standard deviation over the base's pictures of a prompt.
        place: what an error calls the setting.
    """

    name: str
    model: RewardModel
    unit: float = 1.0
    place: str = ""

    def __call__(
        self, pictures: Float[Tensor, "n 3 h w"], prompts: Sequence[str], differentiable: bool = False
    ) -> Float[Tensor, " n"]:
        """Raises TrainingError where pictures or scores are no numbers."""
        self._check("a predicted picture", pictures, WITHOUT_IT)
        scores = self.model.score(pictures, prompts, differentiable=differentiable)
        self._check(f"the reward {self.name}", scores, reward_is_broken(self.name))
        return scores

    def _check(self, name: str, values: Tensor, mend: str) -> None:
        if not torch.isfinite(values).all():
            raise TrainingError(f"{name} is not finite at {self.place}; stopped. {mend}")


def opened(composed: DictConfig, name: str, act: Callable[[dict[str, Any], Path], Any]) -> Any:
    """Begins a control's run, or goes on with it, and lets `act` do the work. Raises UserError on a finished one."""
    quieten()
    cfg, folder = stored_run(composed) if composed.resume else new_run(composed, name)
    if (folder / "summary.json").exists():
        raise UserError(
            f"resume={folder}: it is finished, and there is nothing to go on with; a new one begins without resume=."
        )
    with session(folder):
        return act(cfg, folder)


def run(cfg: dict[str, Any], folder: Path, kind: type[Control]) -> Row:
    """Draws what is left of the settings, and sums up; returns the last row.

    Raises UserError where the task's options are missing.
    """
    task = cfg["task"]
    if cfg[task] is None:
        raise UserError(f"task={task} needs its options: choose +experiment={task}, which has them.")
    control = kind(**cfg[task])
    control.seed = cfg["seed"]
    lightning.seed_everything(cfg["seed"], verbose=False)
    policy: DiffusionPolicy = build(cfg["policy"])
    policy.requires_grad_(False)
    rewards = build_rewards(cfg["suite"]["rewards"])
    reward = rewards[cfg["train_reward"]]
    evaluation = build_evaluation(cfg, folder, policy, rewards)
    with policy.sampling(**evaluation.conditions):
        if not policy.has_density:
            raise UserError("evaluation.eta=0: without noise all samples from one state are the same; choose eta=1.0.")
        settings = control.settings(policy.num_steps, reward.queries)
    if control.needs_gradient and not reward.has_gradient(evaluation.sets[0].prompts[0]):
        raise UserError(
            f"train_reward={cfg['train_reward']}: {type(reward).__name__} has no gradient with respect to the picture, "
            "which das follows: choose another reward, or +experiment=code, which needs none."
        )
    open_run_dir(folder, cfg, checkpoint_bytes=0)
    guided = Guided(policy, control, Scorer(cfg["train_reward"], reward), folder / POOL)
    series = ControlSeries(guided, members_of(cfg, rewards), settings, evaluation, cfg["policy"]["path"])
    seconds, loggers = go_through(cfg, folder, series, evaluation)
    summarise(cfg, folder, series, seconds)
    tell_where_to_look(loggers)
    return evaluation.history[-1]


class Guided:
    """The policy that evaluation sees: the base, or the base as a control draws it.

    A picture is drawn once at a setting, even by a run that a kill has interrupted: its latents lie below `folder`
    until the next setting.
    """

    has_density = False  # whatever is known of the KL stands in the setting's columns

    def __init__(self, base: DiffusionPolicy, control: Control, reward: Scorer, folder: Path):
        self.base, self.control, self.reward, self.folder = base, control, reward, folder
        self.setting: Setting | None = None
        self.held: dict[int, Tensor] = {}  # x_0 by the picture's seed

    def take_up(self, number: int, setting: Setting, unit: float) -> None:
        """Draws at this setting from now on; pictures of it that a kill has left are kept, others go."""
        self.setting, self.part = setting, make_folder(self.folder / f"{number:03d}")
        self.reward.unit, self.reward.place = unit, setting.label
        for other in self.folder.iterdir():
            if other != self.part:
                remove(other)
        self.held = {}
        for file in sorted(self.part.glob("*.npz")):
            kept = np.load(file)
            self.held |= dict(zip(kept["seeds"].tolist(), torch.from_numpy(kept["latents"]), strict=True))

    def sampling(self, **conditions: Any) -> Any:
        """The base's, see DiffusionPolicy."""
        return self.base.sampling(**conditions)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The base without the reward's say, for as long as the context lasts."""
        setting, self.setting = self.setting, None
        try:
            yield
        finally:
            self.setting = setting

    @torch.no_grad()
    def sample(self, prompts: list[str], seeds: list[int]) -> Rollout:
        """A picture for each prompt and seed; of its trajectory x_0 alone."""
        if self.setting is None:
            return self.base.sample(prompts, seeds)
        self._draw([(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True) if seed not in self.held])
        latents = torch.stack([self.held[seed] for seed in seeds]).to(self.base.device)
        images = torch.cat([self.base.decode(part) for part in latents.split(self.base.sampling_batch)])
        no_steps = torch.empty(len(seeds), 0)
        return Rollout(prompts, seeds, latents[:, None], self.base.timesteps[:0], no_steps, images)

    def _draw(self, left: list[tuple[str, int]]) -> None:
        """Draws the pictures that are left, and writes a file for each part of them."""
        assert self.setting is not None
        options = self.setting.options
        at_once = max(1, self.base.sampling_batch // self.control.width(**options))
        parts = [left[i : i + at_once] for i in range(0, len(left), at_once)]
        for part in track(parts, self.setting.label):
            prompts, seeds = ([pair[k] for pair in part] for k in (0, 1))
            latents = self.control.draw(self.base, self.reward, prompts, seeds, **options).cpu()  # type: ignore[arg-type]
            write_arrays(self.part / f"{seeds[0]}.npz", seeds=np.array(seeds), latents=latents.numpy())
            self.held |= dict(zip(seeds, latents, strict=True))  # type: ignore[arg-type]


class ControlSeries(Series[Setting]):
    """An iteration takes up a setting."""

    remedy = WITHOUT_IT

    def __init__(
        self,
        guided: Guided,
        members: list[str],
        settings: list[Setting],
        evaluation: CrossRewardEvaluation,
        base: str,
    ):
        super().__init__(guided.base, guided.reward.name, members, settings, base)
        self.guided, self.evaluation = guided, evaluation

    @property
    def drawn_from(self) -> Guided:
        return self.guided

    @property
    def when(self) -> str:
        return "at {:,} reward queries a picture"

    def take_up(self, number: int) -> None:
        unit = self.evaluation.history[0][f"eval/{self.reward_name}/base_sd"]
        if not unit > NO_SPREAD:
            raise TrainingError(
                f"the base's pictures do not differ in {self.reward_name}, so that there is nothing to choose by; "
                "stopped: take more prompts, or more evaluation.samples_per_prompt."
            )
        self.guided.take_up(number, self.points[number], unit)

    def columns(self, point: Setting | None) -> Row:
        return dict(point.columns if point else self.guided.control.base_columns())


def summarise(cfg: dict[str, Any], folder: Path, series: ControlSeries, seconds: float) -> None:
    """Writes summary.json and the report, and prints the curve."""
    rows = series.evaluation.history
    summary = {
        "experiment": cfg["name"],
        "train_reward": series.reward_name,
        "points": [setting.label for setting in series.points],
        "final": rows[-1],
        "wall_seconds_of_this_session": seconds,
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)  # before the report, for which it tells that the run is finished
    remove(folder / POOL)  # what is left of it is in the scores and the grids
    firsts = {
        "": ["the base", *(setting.label for setting in series.points)],
        "queries": [f"{row['reward_queries']:,}" for row in rows],
        "gradients": [f"{row['reward_gradients']:,}" for row in rows],
        "KL [nats]": [f"{row['kl/trajectory']:.2f}" if "kl/trajectory" in row else "-" for row in rows],
    }
    show(curve_table(f"{cfg['name']}: gain over the base [base sd]", firsts, rows, list(series.evaluation.rewards)))
    print(f"pictures: {folder / 'samples'}   metrics: {folder / 'metrics.jsonl'}")
    print(f"report: {write_report(find_runs([str(folder)]), folder / 'report.html')}")


# -------------------------------------------------------------------------------------------- what drawing makes use of


def streams(seeds: Sequence[int], width: int, run_seed: int = 0) -> list[int]:
    """Seeds of the trajectories that are drawn for each picture; the first is the picture's own, which the base has."""
    more = (run_seed,) if run_seed else ()  # of seed 0 they are those of runs that were made before it counted
    return [seed if k == 0 else seed_of(seed, k, *more, POOL_STREAM) for seed in seeds for k in range(width)]


def repeated(prompts: Sequence[str], width: int) -> list[str]:
    """Each prompt `width` times, side by side."""
    return [prompt for prompt in prompts for _ in range(width)]


def in_batches(function: Callable[..., Tensor], size: int, *rows: Any) -> Tensor:
    """The function of rows, so many at a time."""
    return torch.cat([function(*part) for part in zip(*(table.split(size) for table in rows), strict=True)])


def counts(given: Any, option: str) -> list[int]:
    """Of a number or a list, ascending. Raises UserError on anything but whole numbers from 1 on."""
    found = sorted(numbers(given, option))
    if not found or any(value < 1 or value % 1 for value in found):
        raise UserError(f"{option}={given}: give whole numbers from 1 on, such as {option}=2,4,8.")
    return [int(value) for value in found]


def write_arrays(file: Path, **arrays: Any) -> None:
    """Whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(file, content.getvalue())
