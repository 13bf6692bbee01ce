"""What finished and unfinished runs left in their folders, ready to be drawn."""

import inspect
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from src.config import default_of, default_values
from src.errors import UserError
from src.files import read_object, read_rows, user_path
from src.overrides import choice_of
from src.progress import track
from src.runs.folder import read_config

Row = dict[str, Any]
IN_SD = ("gain", "gain_low", "gain_high", "below_peak")  # of a reward, in base sd
ROOT = Path(__file__).parents[2]  # what a stored configuration's paths are relative to
IGNORED = (
    "run_dir",
    "resume",
    "threads",
    "logger",
    "name",
    "checkpoint_every",
    "objective",
)  # say nothing about the experiment


@dataclass(frozen=True)
class Axis:
    """What the evaluations of a run are laid out over."""

    key: str  # of their rows
    title: str
    at: str  # of a value, in a sentence
    first: str = "before training"  # of the base, likewise
    log: bool = False


UNTOUCHED = "without a choice"
AXES = {
    "queries": Axis("reward_queries", "reward queries [images]", "at {:,} queries"),
    "checkpoints": Axis("reward_queries", "number of the checkpoint", "at checkpoint {:,}", "at the base"),
    "scale": Axis("policy/scale", "scale, share of what fine-tuning changed", "at scale {:g}", "at scale 0"),
    "aig": Axis("policy/aig", "p of annealed importance guidance, 0 is the tuned model", "at p = {:g}", "without it"),
    "best_of_n": Axis("best_of_n/n", "n, base samples to choose from", "at the best of {:,}", UNTOUCHED, log=True),
    "per_picture": Axis("reward_queries", "reward queries a picture [images]", "at {:,} queries a picture", UNTOUCHED),
    "alpha": Axis("das/alpha", "alpha, temperature [base sd a nat]", "at alpha = {:g}", "at the base", log=True),
}
KL = Axis("kl/sqrt", "sqrt(KL from the base) [nats^½]", "at sqrt(KL) = {:.1f}", "at the base")
CHOICES = {  # of an x-axis for all runs, by what --x says
    "reward_queries": AXES["queries"],
    "reward_gradients": Axis("reward_gradients", "reward gradients [images]", "at {:,} gradients"),
    "kl": KL,
    "iterations": Axis("iteration", "iterations", "at iteration {:,}"),
}
CHOICES_OF_CONTROLS = {  # whose cost is one picture's
    "reward_queries": AXES["per_picture"],
    "reward_gradients": Axis(
        "reward_gradients", "reward gradients a picture [images]", "at {:,} gradients a picture", UNTOUCHED
    ),
    "kl": KL,
}
STOPPED = "stopped.json"  # in the folder of a kept run that had to stop, such as at a NaN: why
CONTROLS = ("best_of_n", "code", "das")  # tasks that train nothing


@dataclass
class Run:
    """One run folder, read."""

    folder: Path
    config: dict[str, Any]
    iterations: list[Row]
    evaluations: list[Row]  # the base model's first; of a control, then one for each setting
    watch: list[Row] = field(default_factory=list)
    label: str = ""
    x: str | None = None  # a key of CHOICES, where the axis has been chosen

    @property
    def commit(self) -> str:
        """Of the code that ran it, in short, and whether it was changed; several where it was resumed by another.

        Empty where none is known.
        """
        file = self.folder / "versions.json"
        found = read_object(file) if file.exists() else {}
        commits = dict.fromkeys(each for each in (*found.get("earlier_commits", []), found.get("commit")) if each)
        return " ".join(each[:9] + ("+changes" if each.endswith("+changes") else "") for each in commits)

    @property
    def finished(self) -> bool:
        """Whether its last evaluation has been made, be it that the watch stopped it before the last iteration."""
        whole = bool(self.iterations) and self.evaluations[-1]["iteration"] >= self.config["iterations"]
        return whole or (self.folder / "summary.json").exists()

    @property
    def had_to_stop(self) -> bool:
        """Whether it ended at a fault of training, such as a NaN; known of kept runs."""
        return (self.folder / STOPPED).exists()

    def value(self, key: str) -> Any:
        """Of a key joined by dots; of a component's option or a top-level key younger than the run, its default."""
        return self._flat[key] if key in self._flat else _younger(self.config, key)

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return flat(self.config)

    @property
    def trained(self) -> str | None:
        """Name of the reward that it is trained on, or drawn by; None of weights of which nobody knows it."""
        return self.config["train_reward"]

    @property
    def rewards(self) -> list[str]:
        """Names of all evaluated rewards, the trained one first, judges last."""
        judges = list(self.config["suite"].get("judges") or {})
        others = [name for name in self.config["suite"]["rewards"] if name != self.trained]
        return [*([self.trained] if self.trained else []), *others, *judges]

    @property
    def judge(self) -> str | None:
        """Name of the first judge, whose verdict is the truth; None in a suite without one."""
        return next(iter(self.config["suite"].get("judges") or {}), None)

    @property
    def others(self) -> list[str]:
        """Names of the rewards that neither are trained on nor part of what is, such as an ensemble's members."""
        rewards = self.config["suite"]["rewards"]
        members = rewards[self.trained].get("members", []) if self.trained else []
        return [name for name in rewards if name != self.trained and rewards[name] not in members]

    def series(self, key: str, rows: list[Row] | None = None) -> list[float | int]:
        """A key's values, row by row, nan where a row lacks it; of the evaluations, or other rows."""
        return [row.get(key, float("nan")) for row in (self.evaluations if rows is None else rows)]

    @property
    def has_average(self) -> bool:
        """Whether averaged weights were evaluated beside the raw ones."""
        return any(f"eval_ema/{name}/gain" in self.evaluations[-1] for name in self.rewards)

    @property
    def alarm(self) -> int | None:
        """Reward queries at the watch's alarm."""
        return next((row["reward_queries"] for row in self.watch if row["watch/alarm"]), None)

    @property
    def control(self) -> dict[str, list[float | int]] | None:
        """Best of n by the trained reward: n, and gains of the reward and of the judge; None if unknown.

        It is known of one base, one way of sampling, one set of prompts and one version of the reward.
        """
        if not self.trained:
            return None
        file = ROOT / (self.config["suite"].get("control") or "")
        known = read_object(file).get("best_of_n", {}) if file.is_file() else {}
        of = known.get(f"{self.trained}/of")
        if of is None or of != choice_among(self.config, self.trained):
            return None
        return {"n": known["n"], "proxy": known[f"{self.trained}/proxy"], "judge": known[f"{self.trained}/gold"]}

    @property
    def is_best_of_n(self) -> bool:
        """Whether it is best-of-n sampling, whose curve is one over n."""
        return self.config.get("task") == "best_of_n"

    @property
    def is_control(self) -> bool:
        """Whether nothing was trained: its rows are points of one curve, and their costs a picture's."""
        return self.config.get("task") in CONTROLS

    @property
    def control_name(self) -> str:
        """What a control does, by what it was done."""
        if self.is_best_of_n:
            return f"best of n by {self.trained}"
        options = self.config[self.config["task"]]
        if self.config["task"] == "code":
            return f"CoDe (B = {options['block_size']}) by {self.trained}"
        fixed = f"P = {self.evaluations[-1]['das/particles']}" if self.layout == "alpha" else f"alpha = {self._alpha:g}"
        return f"DAS ({fixed}) by {self.trained}"

    @property
    def _alpha(self) -> float:
        return self.evaluations[-1].get("das/alpha", float("nan"))

    @property
    def layout(self) -> str:
        """A key of AXES."""
        if self.is_best_of_n:
            return "best_of_n"
        if self.is_control:
            return (
                "alpha"
                if len({row["das/alpha"] for row in self.evaluations if "das/alpha" in row}) > 1
                else "per_picture"
            )
        if self.config.get("task") != "evaluate":
            return "queries"
        for key in ("aig", "scale"):
            if len({row[f"policy/{key}"] for row in self.evaluations[1:] if f"policy/{key}" in row}) > 1:
                return key
        return "checkpoints" if "policy/checkpoint" in self.evaluations[-1] else "queries"

    @property
    def axis(self) -> Axis:
        """What its curves are drawn over."""
        if self.x is None:
            return AXES[self.layout]
        return (CHOICES_OF_CONTROLS if self.is_control else CHOICES)[self.x]

    @property
    def axis_of_iterations(self) -> Axis:
        """What the rows of its iterations are laid out over: the axis, where they have it, else reward queries."""
        return self.axis if all(self.axis.key in row for row in self.iterations) else AXES["queries"]

    @property
    def is_frontier(self) -> bool:
        """Whether it looks at one checkpoint by degrees."""
        return self.layout in ("scale", "aig")

    @property
    def places(self) -> list[int | float]:
        """Of the evaluations on the axis; nan where they have none."""
        return self.series(self.axis.key)

    def told(self, k: int) -> str:
        """Where the k-th evaluation stands, in a sentence."""
        if k and self.lone is not None and self.x is None:
            return f"at {self.lone}"
        return self.axis.first if k == 0 else self.axis.at.format(self.places[k])

    @property
    def lone(self) -> str | None:
        """The name of the weights, where one file or folder was evaluated of which no number is known."""
        given = self.config.get("weights")
        given = given[0] if isinstance(given, list) and len(given) == 1 else given
        if self.layout != "checkpoints" or len(self.evaluations) > 2 or not isinstance(given, str) or "*" in given:
            return None
        return Path(given).name

    @property
    def place_of_alarm(self) -> int | float | None:
        """Of the evaluation that the watch spoke at."""
        pairs = zip(self.queries, self.places, strict=True)
        return next((place for queries, place in pairs if queries == self.alarm), None)

    @property
    def queries(self) -> list[int]:
        """Reward queries at each evaluation; of a control, of one picture."""
        return [row["reward_queries"] for row in self.evaluations]


def choice_among(config: dict[str, Any], reward: str) -> dict[str, Any]:
    """What best of n by this reward depends on, of a resolved configuration."""
    chooser = config["suite"]["rewards"][reward]
    return {
        "base": [config["policy"].get(key) for key in ("path", "revision")],
        "sampling": [_sampled(config, key) for key in ("num_steps", "eta", "guidance")],
        "prompts": config["prompts"],
        "reward": [chooser.get(key) for key in ("_target_", "path")],
    }


def _sampled(config: dict[str, Any], key: str) -> Any:
    """How pictures are sampled for evaluation."""
    other = (config.get("evaluation") or {}).get(key)
    return config["policy"].get(key) if other is None else other


def find_runs(paths: Iterable[str]) -> list[Run]:
    """Every run at or below the paths, labelled by what sets them apart. Raises UserError where there is none.

    One that cannot be read is told on stderr and left out.
    """
    folders: dict[Path, None] = {}
    for path in map(user_path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such folder; name a run, such as runs/NAME, or a folder of runs.")
        found = sorted(file.parent for file in path.rglob("metrics.jsonl") if (file.parent / "config.yaml").exists())
        if not found:
            raise UserError(f"{path} holds no run (a folder with config.yaml and metrics.jsonl); name one that does.")
        folders |= dict.fromkeys(folder.resolve() for folder in found)
    runs, faults = [], []
    for folder in track(folders, "reading runs"):
        try:
            run = read_run(folder)
        except UserError as error:
            faults.append(str(error))
        else:
            runs += [run] if run else []
    if not runs:
        missing = "none of these runs has been evaluated yet; the base model's evaluation comes first: wait for it."
        raise UserError(faults[0] if faults else missing)
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    differing = differences(runs)
    for run in runs:
        parts = [_told(run, key) for key in differing[:4] if run.value(key) is not None or key in run._flat]
        run.label = ", ".join(parts) or run.folder.name
    return runs


def _told(run: Run, key: str) -> str:
    """A key's value as the command line says it: reset=none."""
    place, _, option = key.rpartition(".")
    return choice_of(place, str(run.value(key))) if option == "_target_" else f"{option}={run.value(key)}"


def lay_out(runs: Iterable[Run], x: str | None) -> None:
    """Lays all runs out over one of CHOICES; None leaves each its own axis.

    Raises UserError on a run that does not have it.
    """
    if x is None:
        return
    for run in runs:
        if lacks := _lacks(run, x):
            raise UserError(f"--x {x}: {run.folder} cannot be drawn over it, {lacks}: choose another, or leave it out.")
        run.x = x


def _lacks(run: Run, x: str) -> str | None:
    """Why a run cannot be laid out over one of CHOICES; None where it can."""
    if x == "iterations" and (run.is_control or run.config.get("task") == "evaluate"):
        return "for nothing is trained in it"
    if x == "reward_queries" and run.layout == "checkpoints":
        return "for the reward queries of its checkpoints are not known"
    key = CHOICES[x].key
    places = run.series(key)[1:]
    if any(place != place for place in places):
        return f"for it has not logged {key}"
    if places and not any(places):
        return f"for its {key} stays 0"
    return None


def read_run(folder: Path) -> Run | None:
    """The run in a folder, or None if it is none of fine-tuning or has not been evaluated yet."""
    config = read_config(folder)
    if config.get("task") == "train_reward":
        return None
    rows = list(read_rows(folder / "metrics.jsonl"))  # a callback of the user's may have logged some without a kind
    by_kind = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("iteration", "evaluation", "watch")}
    if not by_kind["evaluation"]:
        return None
    evaluations = [in_one_unit(row, config) for row in by_kind["evaluation"]]
    return Run(folder, config, by_kind["iteration"], evaluations, by_kind["watch"])


def in_one_unit(row: Row, config: dict[str, Any]) -> Row:
    """The row with held-out gains in the base sd of training prompts, where each held-out prompt has one picture.

    So they are logged now; runs from before have them in the spread between prompts.
    """
    samples = config.get("evaluation") or {}
    if samples.get("held_out_samples_per_prompt") != 1 or samples.get("samples_per_prompt", 1) < 2:
        return row
    found = dict(row)
    of_rewards = [key.split("/") for key in row if key.startswith("held_out") and key.count("/") == 2]
    for part, name, figure in of_rewards:
        there, here = row.get(f"{part}/{name}/base_sd"), row.get(f"eval/{name}/base_sd")
        if not there or not here:
            continue
        if figure in IN_SD:
            found[f"{part}/{name}/{figure}"] *= there / here
        elif figure == "base_sd":
            found[f"{part}/{name}/{figure}"] = here
    for part, name, figure in of_rewards:
        if figure == "gap" and f"{part}/{name}/gain" in row:
            gains = [found[f"{part}/{each}/gain"] for each in (config["train_reward"], name)]
            found[f"{part}/{name}/{figure}"] = gains[0] - gains[1]
    return found


def _younger(config: dict[str, Any], key: str) -> Any:
    try:
        default = _defaults()[key] if key in _defaults() else default_of(config, key)
    except ImportError:  # what was built then is gone
        return None
    return None if default is inspect.Parameter.empty else default


@cache
def _defaults() -> dict[str, Any]:
    return flat(default_values())  # a whole group, such as regulariser, may be younger than the run


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(runs: list[Run], begin: tuple[str, ...] = ("",)) -> list[str]:
    """Keys that are not the same in all runs, of those that begin with one of these.

    A suite's word on its base counts only in runs that are no older than it.
    """
    configs = [flat({k: v for k, v in run.config.items() if k not in IGNORED}) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config if key.startswith(begin))
    told = {key: [run for run, c in zip(runs, configs, strict=True) if key in c or not describes(key)] for key in keys}
    return [key for key in keys if len({json.dumps(run.value(key), default=str) for run in told[key]}) > 1]


def describes(key: str) -> bool:
    """Whether it is a suite's word on its base, which acts only through other keys that take their value from it."""
    return key.startswith("suite.") and not key.startswith(("suite.rewards.", "suite.judges.", "suite.tower."))
