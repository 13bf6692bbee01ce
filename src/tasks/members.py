"""What an evaluation of weights goes through: the checkpoints of a series by number, or one of them by degrees."""

import glob
import itertools
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files import near, read_object, user_path
from src.policy.weights import Weights, recognise

NUMBER = re.compile(r"\d+")
NUMBERED = re.compile(r"(?:checkpoint|step|iteration|epoch)[-_]?(\d+)(?:\.safetensors)?")  # a name that is a number


@dataclass(frozen=True)
class Point:
    """One evaluation: weights, how much of them is used, and where it stands on the x-axis."""

    weights: Weights
    at: int
    scale: float = 1.0
    aig: float | None = None
    counted: bool = False  # whether `at` are reward queries, and not a number

    @property
    def label(self) -> str:
        """What tables and messages call it: the path, and how much of it is used."""
        used = (
            f" at aig {self.aig:g}" if self.aig is not None else f" at scale {self.scale:g}" if self.scale != 1 else ""
        )
        return f"{self.weights.path}{used}"


def points_of(cfg: dict[str, Any]) -> list[Point]:
    """Of a checked configuration, in the order of evaluation.

    Raises UserError where there are no weights, a number is missing, or several weights meet several degrees.
    """
    weights = [recognise(path) for path in paths_of(cfg["weights"])]
    scales, powers = numbers(cfg["scale"], "scale"), numbers(cfg["aig"], "aig")
    if (len(scales) > 1 and powers) or (len(weights) > 1 and max(len(scales), len(powers)) > 1):
        raise UserError("a frontier has one checkpoint and either scale= or aig=; evaluate the others by themselves.")
    if any(scale < 0 for scale in scales):
        raise UserError(f"scale={cfg['scale']}: scales must not be negative; 0 is the base, 1 all of the weights.")
    if any(power < 0 for power in powers):
        raise UserError(f"aig={cfg['aig']}: powers must not be negative; 0 is the tuned model, inf the base.")
    where, counted = places(weights, cfg)
    ordered = sorted(zip(where, weights, strict=True), key=lambda pair: pair[0])
    powers_or_none: list[float | None] = [*powers] or [None]
    degrees = list(itertools.product(scales or [1.0], powers_or_none))
    return [Point(found, at, scale, power, counted) for at, found in ordered for scale, power in degrees]


def paths_of(given: Any) -> list[str]:
    """Of a path, a pattern, a list, a hub id, or a folder of numbered checkpoints. Raises UserError on none."""
    if isinstance(given, list):
        if not given or not all(isinstance(path, str) for path in given):
            raise UserError(f"weights={given}: give paths of weights, as texts.")
        return given
    if not isinstance(given, str) or not given:
        raise UserError("task=evaluate needs weights=: a path, a pattern such as 'ckpts/checkpoint-*', or a hub id.")
    if glob.has_magic(given) and not Path(given).exists():
        found = sorted(glob.glob(str(user_path(given))))  # noqa: PTH207 (absolute patterns too)
        if not found:
            raise UserError(f"weights={given}: nothing has such a name{near(given)}; correct the path or the pattern.")
        return found
    folder = user_path(given)
    numbered = sorted(str(child) for child in folder.glob("checkpoint[-_]*") if child.name[11:].isdigit())
    signs = ("*.safetensors", "config.yaml", "model_index.json", "unet", "transformer")
    holds_more = any(any(folder.glob(name)) for name in signs)
    return numbered if numbered and not holds_more else [given]


def places(weights: Sequence[Weights], cfg: dict[str, Any]) -> tuple[list[int], bool]:
    """Where each stands on the x-axis: its reward queries where they are known, else its number; and which it is.

    The number is of `steps`, or the one by which the names differ. Raises UserError on several without one.
    """
    known = [queries_of(Path(found.path)) for found in weights]
    if cfg["steps"] is None and all(k is not None for k in known) and len(set(known)) == len(known):
        return [int(k) for k in known if k is not None], True
    steps = cfg["steps"] or names_numbers([found.path for found in weights])
    if len(steps) != len(weights) or len(set(steps)) < len(steps):
        raise UserError(f"steps={steps}: {len(weights)} checkpoints need as many numbers, each another one.")
    factor = cfg["queries_per_step"]
    if factor is not None and cfg["steps"] is None and len(weights) == 1 and not numbered(weights[0].path):
        raise UserError(f"queries_per_step={factor}: {weights[0].path} does not tell its number; give steps=[NUMBER].")
    return [step if factor is None else round(step * factor) for step in steps], factor is not None


def queries_of(path: Path) -> int | None:
    """Reward queries behind weights of ours: best/ tells them in at.json, a run in summary.json; else None."""
    for file in (path / "at.json", path / "summary.json", path.parent / "at.json", path.parent / "summary.json"):
        if file.is_file():
            with suppress(UserError):  # of others, who may call any file so
                queries = read_object(file).get("reward_queries")
                return queries if isinstance(queries, int) else None
            return None
    return None


def names_numbers(paths: Sequence[str]) -> list[int]:
    """The one number by which these names differ; of a single name the one that it is, as of checkpoint_7, or 1.

    Raises UserError where the names differ by more, or by no number.
    """
    if len(paths) == 1:
        return [numbered(paths[0]) or 1]
    columns = list(zip(*(NUMBER.findall(path) for path in paths), strict=False))
    differing = [column for column in columns if len(set(column)) > 1]
    if len({NUMBER.sub("#", path) for path in paths}) > 1 or len(differing) != 1:
        raise UserError(
            f"weights: no one number tells the order of {paths[0]} and {paths[1]}; give steps=[...], one for each."
        )
    return [int(number) for number in differing[0]]


def numbered(path: str) -> int | None:
    """The number that a checkpoint's name, or its folder's, is; a number that is but part of a name tells nothing."""
    names = (Path(path).name, Path(path).parent.name)
    return next((int(found[1]) for found in map(NUMBERED.fullmatch, names) if found), None)


def numbers(given: Any, option: str) -> list[float]:
    """Of a number, a list, or words divided by commas. Raises UserError on anything else."""
    values = [] if given is None else given if isinstance(given, list) else str(given).split(",")
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise UserError(f"{option}={given}: give numbers, such as {option}=0,0.5,1, or leave it out.") from error
    if any(math.isnan(value) for value in found) or len(set(found)) < len(found):
        raise UserError(f"{option}={given}: give different numbers.")
    return found
