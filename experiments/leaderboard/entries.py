"""The entries of the leaderboard, as entries.yaml lists them, and the overrides of their runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from src.errors import UserError

HERE = Path("experiments/leaderboard")  # commands run in the repository's root
RUNS, TUNING, CHECK = HERE / "runs", HERE / "tuning", HERE / "check"  # kept runs, a folder a method
MADE = Path("multirun/leaderboard")  # where runs are made, likewise
ROLLOUTS = {"hps": 64, "aesthetic": 32}  # pictures of an iteration, by the reward that is trained on
REWARDS = tuple(ROLLOUTS)
ITERATIONS = 25
PICTURES = {reward: ITERATIONS * rollout for reward, rollout in ROLLOUTS.items()}
RAMPS = ("lr_factor=5", "lr_factor=10")  # what the learning rate goes to in a run, times itself
GENTLE = ("lr_factor=1", "lr_factor=5")  # of methods whose reward's gradient goes as far in half of the steps
PROTOCOL = "+study=leaderboard"


@dataclass(frozen=True)
class Entry:
    """A method, as it is run; the fields are explained in entries.yaml."""

    name: str
    title: str
    source: str
    family: str
    asks: str
    overrides: tuple[str, ...] = ()
    tune: str | None = None
    takes: str | None = None  # `as` of the file
    rows_of: str | None = None
    weights_of: str | None = None

    @property
    def tries(self) -> list[tuple[str, ...]]:
        """Of tuning, as overrides; none of what takes the choice of another entry, or trains nothing."""
        if self.tune is None:
            return []
        key, values = self.tune.split("=")
        ramps = GENTLE if self.family == "through the reward" else RAMPS
        return [(ramp, f"{key}={value}") for ramp, value in product(ramps, values.split(","))]

    @property
    def runs(self) -> bool:
        """Whether it has runs of its own."""
        return self.rows_of is None

    def asked(self, reward: str, seed: int | str, choice: Sequence[str] = ()) -> list[str]:
        """All overrides of a run, or of several seeds such as 0,1; of weights that another has trained, all but these.

        A run's weights are evaluated as that run was, so that neither protocol nor reward nor seed are named.
        """
        rollout = ROLLOUTS[reward]
        places = {"{reward}": reward, "{half}": str(rollout // 2)}
        own = list(self.overrides)
        for place, value in places.items():
            own = [override.replace(place, value) for override in own]
        if self.weights_of is not None:
            return own
        trained = [] if any(override.startswith("train_reward=") for override in own) else [f"train_reward={reward}"]
        return [*own, PROTOCOL, f"samples_per_iteration={rollout}", *choice, *trained, f"seed={seed}"]


@cache
def entries() -> dict[str, Entry]:
    """By name, in the order of the file."""
    listed: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "entries.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, fields in listed.items():
        fields["takes"] = fields.pop("as", None)
        found[name] = Entry(name, **fields | {"overrides": tuple(_flat(fields.get("overrides", [])))})
    return found


def _flat(overrides: list[Any]) -> list[str]:
    """Lists that entries share are written once, inside those of each."""
    return [each for part in overrides for each in (part if isinstance(part, list) else [part])]


Chosen = dict[str, dict[str, list[str]]]  # overrides that tuning has chosen, by entry and reward


def chosen() -> Chosen:
    file = HERE / "chosen.yaml"
    return (yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}


def choice_for(entry: Entry, reward: str) -> list[str]:
    """What tuning has chosen for it. Raises UserError where it has not."""
    tuned = entries().get(entry.takes or entry.name, entry)
    found = chosen().get(tuned.name, {}).get(reward)
    if found is None and tuned.tries:
        raise UserError(
            f"{entry.name} on {reward} is not tuned yet: run experiments/leaderboard/run.sh tune, then python -m "
            "experiments.leaderboard.tuning."
        )
    return found or []


def some(names: str, known: list[str], what: str) -> list[str]:
    """Those that a text names, in the order of `known`; all of an empty text. Raises UserError on an unknown one."""
    asked = [name for name in names.replace(",", " ").split() if name]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UserError(f"{what}={unknown[0]} is none of {', '.join(known)}.")
    return [name for name in known if not asked or name in asked]
