"""What Hydra could not compose, in one sentence: which key or choice, what there is instead, and what to type.

Its own sentences advise to append what is misspelt. Ours compare it with the keys of the configuration as chosen, and
with the options of what they build.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config import GROUPS, Config, added_groups, no_key, no_target, options_of, suggestion
from src.errors import UserError
from src.overrides import CONF, MULTIRUN, taken, why

NOT_CHOSEN = {  # keys of the top level that are null until something is chosen -> what that is
    "reward_training": "+experiment=train_reward_hps",
    "code": "+experiment=code",
    "das": "+experiment=das",
}
ALREADY = "{0} is there already: write {1}, without the plus."
SENTENCES = {  # of Hydra -> ours, of its groups
    r"Could not override '(\S+)'\. No match in the defaults list\.\n.* (\S+)": "{0} is chosen with a plus: {1}.",
    r"Could not override '(\S+)'\.\nDid you mean to override (.+)\?": "{0} is no group: did you mean {1}?",
    r"Could not delete from config\. The value of '(\S+)' is (.+) and not (.+)\.": (
        "{0} is {1} and not {2}, so that ~{0}={2} takes nothing away: leave it out."
    ),
    r"Could not delete '(\S+)'\. No match": "{0} has not been chosen, so that nothing is taken away: leave ~{0} out.",
    r"Could not append to config\. An item is already at '(\S+)'\.\n.*: '(.*)'": ALREADY,
    r"force-add of config groups is not supported: '\++(\S+)'": "++{0}: a group is chosen without ++: write {0}.",
    r"Sweeping over Hydra's configuration is not supported : '(\S+)'": (
        "{0}: hydra.* has one value in all jobs of a sweep: give one command for each."
    ),
    r"(\S+) appears more than once in the final": "{0} is chosen twice: choose it once.",
}


@contextmanager
def told(arguments: Sequence[str]) -> Iterator[None]:
    """Raises UserError where Hydra cannot compose the configuration that these arguments of the command ask for."""
    try:
        yield
    except (ConfigCompositionException, AssertionError, yaml.YAMLError) as error:
        if (sentence := why(error) or explained(error, arguments)) is None:
            raise
        raise UserError(sentence) from error


def explained(error: BaseException, arguments: Sequence[str]) -> str | None:
    """One sentence on an error of composing; None of any other error."""
    said = str(error)
    if isinstance(error, yaml.YAMLError):
        return _broken(error)
    if "Unexpected type for root: NoneType" in said:
        return _of_what_is_not_chosen(arguments)
    for pattern, sentence in SENTENCES.items():
        if found := re.match(pattern, said):
            return sentence.format(*found.groups())
    if found := re.match(r"Multiple values for (\S+)\.", said):
        once = f"one +{found[1]}=NAME" if found[1] in added_groups() else f"{found[1]}=NAME, without a plus"
        return f"{found[1]} would be chosen twice: write {once}."
    if found := re.match(r"Override (\S+) looks like .* config group '(\S+)'", said):
        return f"{found[1]}: {no_key(found[2])}"
    if found := re.match(r"Could not (?:override|delete from config\.) '(\S+?)'", said):
        return unknown(found[1], arguments)
    if said.startswith("Error merging override"):
        found = re.search(r"full_key: (\S+)", str(error.__cause__))
        return unknown(found[1], arguments) if found else None
    if found := re.match(r"In '(\S+)': \w+ raised while composing config:\n(.*)(?:\n\s+full_key: (\S+))?", said):
        place, (reason, key) = f"conf/{found[1]}.yaml", found.groups()[1:]
        if reason.startswith("Key"):
            return f"{place}: {unknown(key, [])}"
        return f"{place}: {f'{key}: ' if key else ''}{taken(reason)}."
    return None


def unknown(key: str, arguments: Sequence[str]) -> str:
    """What there is instead of a key that there is not, where these arguments choose from the groups."""
    top = key.split(".")[0]
    if top != "hydra" and top not in {f.name for f in fields(Config)}:
        return no_key(top)
    arms = _arms(top, arguments)
    if len(arms) < 2:
        return _missing(key, _chosen(arguments), arguments)
    told = {arm: _missing(key, _chosen(arguments, {top: arm}), arguments) for arm in arms}
    lacking = [arm for arm in arms if f"is not an option of {top}={arm}" in told[arm]]
    if not lacking:
        return f"{key}: where {top}= is swept, too, an option of its choices is written ++{key}=VALUE."
    if len(lacking) == len(arms):
        return told[arms[0]]
    having = next(arm for arm in arms if arm not in lacking)
    return (
        f"{key} is an option of {top}={having} and not of {top}={lacking[0]}: give arms with options of their own by a "
        "command each, into one folder: hydra.sweep.dir=multirun/NAME."
    )


def _missing(key: str, cfg: DictConfig, arguments: Sequence[str]) -> str:
    """What is at the deepest node of the way to a key, whose next step is not there."""
    node: Any = cfg
    way: list[str] = []
    rest = key.split(".")
    while len(rest) > 1 and OmegaConf.is_dict(node) and rest[0] in node and not OmegaConf.is_missing(node, rest[0]):
        way.append(rest[0])
        node = node[rest.pop(0)]
    place, last = ".".join(way), rest[0]
    if not OmegaConf.is_dict(node):
        return f"{key}: {place} has no options of its own: did you mean {place}=VALUE?" if way else no_key(last)
    group, choice = _choice(way, cfg)
    named = f"{group}={choice}" if choice else place
    known = [name for name in node if not str(name).startswith("_")]
    target = node.get("_target_") if way[:1] != ["hydra"] else None
    if choice and group in GROUPS and not target:
        return no_target(group, choice)
    if target:
        known += [name for name in _options(str(target)) if name not in known]
    if last in known:  # of what is built, but not of the file
        lists = next((name for name, keys in _siblings(group).items() if last in keys), None)
        inherit = f", or begin that file with defaults: [{lists}, _self_], which sets it" if lists else ""
        place = f"conf/{group}/{choice}.yaml" if choice else place
        return f"{key} is an option of {target} that {place} does not set: write ++{key}=VALUE{inherit}."
    return f"{place}.{last} is not an option of {named}: {_instead(last, known, group)}"


def _instead(last: str, known: list[str], group: str) -> str:
    """Another spelling, or another choice of the group that has the option."""
    siblings = _siblings(group)
    close = difflib.get_close_matches(last, known, n=1)
    if close and not any(last in keys for keys in siblings.values()):
        return f"did you mean {close[0]}?"
    names = list(dict.fromkeys(name for keys in siblings.values() for name in keys if not name.startswith("_")))
    if close := difflib.get_close_matches(last, names, n=1):
        having = next(name for name, keys in siblings.items() if close[0] in keys)
        return f"{group}={having} has {close[0]}."
    return suggestion(last, known) if known else "it has none."


def _choice(way: list[str], cfg: DictConfig) -> tuple[str, str | None]:
    """The group that a node of the configuration is chosen from, and its choice; None where it is deeper, or none."""
    group = "/".join(way)
    return group, OmegaConf.select(cfg, "hydra.runtime.choices").get(group)


def _siblings(group: str) -> dict[str, list[str]]:
    """The keys of each file of a group of conf/."""
    files = sorted((CONF / group).glob("*.yaml")) if group else []
    return {file.stem: list(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) for file in files}


def _options(target: str) -> list[str]:
    try:
        return list(options_of(get_object(target))[0])
    except Exception:  # no module, or a broken one: its own sentence is told where it is built
        return []


def _parsed(arguments: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides([each for each in arguments if each not in MULTIRUN])


def _arms(group: str, arguments: Sequence[str]) -> list[str]:
    """What is chosen of a group: several in a sweep."""
    given = [each for each in _parsed(arguments) if each.key_or_group == group and (CONF / group).is_dir()]
    return [str(name) for each in given if each.is_sweep_override() for name in each.sweep_string_iterator()]


def _chosen(arguments: Sequence[str], arms: dict[str, str] | None = None) -> DictConfig:
    """The configuration by the choices of groups alone; of those that are swept the first, or as told."""
    choices = []
    for each in _parsed(arguments):
        group, text = each.key_or_group, str(each.input_line)
        if (CONF / group).is_dir() or group == "sweeps":
            swept = each.is_sweep_override()
            first = (arms or {}).get(group) or (next(each.sweep_string_iterator()) if swept else None)
            choices.append(f"{text.partition('=')[0]}={first}" if first else text)
        elif group == "hydra.searchpath":
            choices.append(text)
    for overrides in (choices, []):  # the fault may be among them
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                return compose("config", overrides, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            continue
    raise AssertionError("the defaults compose")


def _of_what_is_not_chosen(arguments: Sequence[str]) -> str:
    """Of a key below one that is null."""
    for each in _parsed(arguments):
        top, _, option = each.key_or_group.partition(".")
        if option and top in NOT_CHOSEN:
            return f"{each.key_or_group} sets an option of what is not chosen: it needs {NOT_CHOSEN[top]}."
        if option and top in {f.name for f in fields(Config) if f.default is None}:
            return f"{each.key_or_group}: {top} has no options of its own: did you mean {top}=VALUE?"
    return "an override sets an option of what is null: give its whole value."


def _broken(error: yaml.YAMLError) -> str:
    """Where a file is no YAML, and why."""
    mark: Any = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return f"a file of conf/ is no YAML: {reason}."
    path = Path(mark.name)
    path = path.relative_to(CONF.parent) if path.is_relative_to(CONF.parent) else path
    return f"{path}, line {mark.line + 1}, is no YAML: {reason}."
