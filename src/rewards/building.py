"""Rewards from their configuration, without what trains on them: scoring pictures needs no more."""

import functools
from typing import Any

from hydra.utils import instantiate

from src.progress import track
from src.rewards.base import RewardModel

build = functools.partial(instantiate, _convert_="all")  # components get plain lists and dicts


def build_rewards(configs: dict[str, Any]) -> dict[str, RewardModel]:
    """Rewards, or judges, of a suite by name. A member of an ensemble that is one of them is that one, not a copy."""
    built: dict[str, RewardModel] = {}
    ordered = sorted(configs.items(), key=lambda item: "members" in item[1])
    for name, config in track(ordered, "loading rewards"):
        if "members" in config:
            names = [next((n for n in built if configs[n] == member), None) for member in config["members"]]
            members = [built[n] if n else build(m) for n, m in zip(names, config["members"], strict=True)]
            built[name] = build({key: value for key, value in config.items() if key != "members"}, members=members)
        else:
            built[name] = build(config)
    return {name: built[name] for name in configs}
