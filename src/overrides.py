"""What Hydra cannot take of the command line: which override, why, and how to write it."""

import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

CONF = Path(__file__).parent.parent / "conf"
MULTIRUN = ("-m", "--multirun")
SHOWN = ("-c", "--cfg")
LISTS, PATHS = (
    ("scale", "aig", "steps", "code.n", "das.particles", "das.alpha"),
    ("weights",),
)  # keys that have their own way of being written
TAKES = {  # in what OmegaConf says of a value of the wrong type -> what the key takes
    "to Integer": "a whole number",
    "to Float": "a number",
    "a valid bool": "true or false",
    "to string": "a text",
    "is not Optional": "something other than null",
}


FOR_NONE = {  # of groups that have no file of that name -> how to do without
    "critic": "for no critic choose an algorithm that has none, such as +experiment=ddpo",
    "callbacks": "for none of them write callbacks=null",
    "evaluation": "evaluation.every=1000 evaluates before and after training only",
}


def fault_in(arguments: Sequence[str]) -> str | None:
    """One sentence on what Hydra would end on without one; None where there is nothing of the kind."""
    for argument in arguments:
        if any("\ud800" <= sign <= "\udfff" for sign in argument):  # bytes that the locale could not read
            shown = argument.encode("ascii", "backslashreplace").decode()
            return f"{shown} cannot be read in this locale: set LC_ALL=C.UTF-8 or PYTHONUTF8=1."
        key, _, value = argument.lstrip("+").partition("=")
        if key == "resume" and value != "null" and any(other in SHOWN for other in arguments):
            return f"{argument} goes on with the configuration that is in the run's folder: read its config.yaml."
        if argument in MULTIRUN and (shows := [other for other in arguments if other in SHOWN]):
            return f"{argument} and {shows[0]} exclude each other: drop {argument}, and give every key one value."
        if value == "null" and key != "callbacks" and (options := names_in(key)):
            without = f"; {FOR_NONE[key]}" if key in FOR_NONE else ", or leave it out for the default"
            return f"{argument}: choose from {', '.join(options)}{without}."
    return None


def understood(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: it has another word for callbacks=null, and wants no -m among overrides.

    +debug=NAME goes last of them: of two files that set the same key the later counts, and a trial is to be short.
    Unless commas divide jobs (-m, +sweeps=), `scale=0,0.5,1` is a list, and `weights=PATH` a path, whatever is in it.
    """
    overrides = ["~callbacks" if argument == "callbacks=null" else argument for argument in arguments]
    if not any(argument in MULTIRUN or argument.startswith("+sweeps=") for argument in arguments):
        overrides = [_as_typed(argument) for argument in overrides]
    flags = (k for k, argument in enumerate(overrides) if argument.startswith("-") and argument not in MULTIRUN)
    flag = next(flags, len(overrides))  # of Hydra's, such as --cfg job: overrides behind it stay there
    return [*sorted(overrides[:flag], key=_place), *sorted(overrides[flag:], key=_place)]


def _place(argument: str) -> tuple[bool, bool]:
    return argument not in MULTIRUN, argument.startswith("+debug=")


def _as_typed(argument: str) -> str:
    key, _, value = argument.partition("=")
    if not value or value[0] in "['\"":
        return argument
    if key in LISTS and "," in value:
        return f"{key}=[{value}]"
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}" if key in PATHS else argument


def names_in(group: str) -> list[str]:
    """The names of the files of a group of conf/; none of what is no group."""
    return sorted(path.stem for path in CONF.glob("*/*.yaml") if path.parent.name == group)


@cache
def _targets(group: str) -> dict[str, str]:
    """The `_target_` of each file of a group, its own or of the file that it is a delta to."""
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in (CONF / group).glob("*.yaml")
    }

    def target(name: str) -> str:
        node = files.get(name, {})
        parents = [each for each in node.get("defaults", []) if isinstance(each, str) and each in files]
        return node.get("_target_") or next((found for found in map(target, parents) if found), "")

    return {name: target(name) for name in sorted(files)}


def choice_of(group: str, target: str) -> str:
    """How a component is chosen, reset=none, by its `_target_`; its class's name where not one file has that."""
    names = [name for name, found in _targets(group).items() if found == target]
    return f"{group}={names[0]}" if len(names) == 1 else target.rsplit(".", 1)[-1]


def written(key: str, value: str) -> str:
    """key=value as it has to be typed: in quotes for Hydra, and for the shell, where they need them."""
    if _reads_as(f"{key}={value}") == value:
        return shlex.quote(f"{key}={value}")
    override = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return shlex.quote(override) if re.search(r'["$`\\!]', override) else f'"{override}"'


def _reads_as(override: str) -> str | None:
    """What Hydra reads as the value of an override; None where it cannot, or where it is a sweep."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return None
    return None if parsed.is_sweep_override() else str(parsed.value())


def why(error: BaseException) -> str | None:
    """The sentence of an override that Hydra or OmegaConf rejects; None of any other error."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.options is not None:
        missing = str(error.missing_cfg_file)
        given = missing.removeprefix("prompts/")
        if given != missing and (Path(given).is_file() or "." in given):
            return f"prompts={given} names no set of prompts; of a file: prompts=file {written('prompts.path', given)}."
        group, _, name = missing.rpartition("/")
        slash = "in a file of conf/ another group begins with a slash: override /reset: NAME"
        others = f"choose from {', '.join(error.options)}" if error.options else slash
        without = f"; {FOR_NONE[group]}" if name == "none" and group in FOR_NONE else ""
        return f"there is no conf/{missing}.yaml: {others}{without}."
    said = str(error)
    if found := re.match(r"Ambiguous value for argument '(.*)'\n1\.", said, re.S):
        key, _, value = found[1].partition("=")
        return (
            f"{found[1]} gives several values: add -m for a sweep over them, or write {key}=[{value}] for a list, "
            f"{written(key, value)} for a text."
        )
    if found := re.match(r"Sweep parameters '(.*)' requires --multirun", said, re.S):
        return f"{found[1]} gives several values: add -m for a sweep over them."
    if (found := re.match(r"Error merging override (.*)", said, re.S)) and error.__cause__:
        reason = str(error.__cause__).strip().splitlines()[0]
        return None if reason.startswith("Key") else f"{found[1]}: {taken(reason)}."
    if isinstance(error, ValueError) and said.startswith("Config group override must be"):
        return f"an override chooses something of a group that is no name of one of its files ({said.split('. ')[-1]})."
    return None


def taken(reason: str) -> str:
    """What a key takes, by what OmegaConf says of a value that it does not."""
    takes = next((word for sign, word in TAKES.items() if sign in reason), None)
    return f"it takes {takes}" if takes else reason


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is no KEY=VALUE; a value with a space in it needs quotes: \"name='two words'\"."
    if _reads_as(f"{key}=1") is None:
        return f"{override}: {key!r} is no key that Hydra can read."
    alone = [sign for sign in dict.fromkeys(value) if _reads_as(f"{key}=x{sign}x") is None]
    signs = f" with {' '.join(alone)} in it" if alone else ""
    return f"{override}: Hydra reads a value{signs} in quotes only: {written(key, value)}."
