"""The pages that are made from the code: `python -m docs.generate` writes them, and a test fails where they are stale.

docs/metrics.md from the glossary; docs/configuration/ from conf/, the comments of the schema and the docstrings of the
constructors; docs/api/ from the modules there are.
"""

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from src import config
from src.config import options_of
from src.metrics.glossary import as_markdown
from src.tasks.code import CoDe
from src.tasks.das import DAS

ROOT = Path(__file__).resolve().parents[1]
CONF, DOCS = ROOT / "conf", ROOT / "docs"
MADE = "Made from the code by `python -m docs.generate`; do not edit."
PAGES = {  # of groups
    "algorithms": ("Algorithms", ("algorithm",)),
    "methods": ("Policy, critic, resets, regularisers", ("policy", "critic", "reset", "regulariser", "normaliser")),
    "runs": ("Prompts, evaluation, watch, devices", ("prompts", "evaluation", "callbacks", "logger", "trainer")),
}
GROUPS = tuple(group for _, groups in PAGES.values() for group in groups)
ADDED = ("debug", "preset", "study", "ensemble", "wrapper", "reward", "reward_training")  # +GROUP=OPTION
PLUGINS = ("hydra/launcher", "hydra/sweeper")
BY_MODULE = ("algorithm", "regulariser", "reset")  # a file each
OPTION = ("option", "default", "takes", "meaning")
API = {
    "core": (
        "Vocabulary and iteration",
        ["types", "finetuner", "learner", "normalise", "seeding", "prompts", "config", "errors"],
    ),
    "policy": ("Policy", ["policy/*"]),
    "rewards": ("Rewards", ["rewards/*"]),
    "algorithms": ("Algorithms", ["algorithms/*"]),
    "regularisers": ("Regularisers", ["regularisers/*"]),
    "critic": ("Critic and resets", ["critic/*", "resets/*"]),
    "evaluation": ("Evaluation and metrics", ["callbacks/*", "metrics/*"]),
    "tasks": ("Tasks, runs, reports", ["tasks/*", "runs/*", "report/*", "loggers/*", "pictures", "score", "dashboard"]),
}
Row = Sequence[str]


def pages() -> dict[Path, str]:
    """The text of every page, by its file."""
    made = {"metrics.md": metrics(), "configuration/index.md": top_level()}
    made |= {f"configuration/{page}.md": components(page) for page in PAGES}
    made |= {"configuration/suites.md": suites(), "configuration/launchers.md": launchers()}
    made |= {"api/index.md": api_index()} | {f"api/{name}.md": api_page(name) for name in API}
    return {DOCS / name: text.strip() + "\n" for name, text in made.items()}


def metrics() -> str:
    return f"# Every key that a run logs\n\n{MADE}\n\n{as_markdown()}"


# ---------------------------------------------------------------------------------------------- the configuration


def top_level() -> str:
    values = raw(CONF / "config.yaml")
    mini = raw(CONF / "suite/mini.yaml")
    meanings = comments_of_fields(config.Config)
    groups = {*GROUPS, "suite", "code", "das", "optimizer", "critic_optimizer", "reward_training"}
    rows = [
        [f"`{key}`", shown(values.get(key, mini.get(key))), meaning]
        for key, meaning in meanings.items()
        if key not in groups
    ]
    optimizers = [
        [f"`{key}`", shown(values["optimizer"][key]), "" if key != "lr" else "goes by what is trained, and how"]
        for key in values["optimizer"]
        if not key.startswith("_")
    ]
    chosen = [next(iter(each.items())) for each in values["defaults"] if not isinstance(each, str)]
    options = [
        [
            f"[`{group}=`]({page_of(group)}#{group})",
            ", ".join(f"`{name}`" for name in names_in(group)),
            f"`{default}`",
            meanings.get(group, ""),
        ]
        for group, default in chosen
        if group in (*GROUPS, "suite")
    ]
    return f"""# Configuration

{MADE}

A command composes `conf/config.yaml`, one option of every group, an experiment, and what follows on the command line,
in this order. `KEY=VALUE` sets a key, `GROUP=OPTION` chooses a file of a group, `GROUP.KEY=VALUE` sets an option of
what is chosen, `+GROUP=OPTION` adds a file that is not among the defaults. `--cfg job` behind a command prints what
comes of it. What is misspelt or mistyped ends the command with a sentence.

## Groups

{table(["group", "options", "default", "what it is"], options)}

Added by `+GROUP=OPTION`:
{", ".join(f"`{group}`" for group in ("experiment", "sweeps", *ADDED))} ([suites](suites.md#added-files)).
How many runs are launched: [launchers](launchers.md).

## Keys

Defaults in `${{...}}` are taken from that key; those of budgets and sampling are suite=mini's.

{table(["key", "default", "meaning"], rows)}

## Controls without training

{control_options("code", CoDe)}

{control_options("das", DAS)}

## Optimizers

`optimizer.` is the policy's, `critic_optimizer.` the critic's (`lr` 1e-4): torch's AdamW, or another by
`optimizer._target_=`.

{table(["option", "default", "meaning"], optimizers)}
"""


def control_options(name: str, target: type) -> str:
    """The options of a control, with the defaults of its experiment."""
    defaults, meanings = raw(CONF / f"experiment/{name}.yaml")[name], arguments_of(target)
    rows = [[f"`{name}.{key}`", shown(value), meanings.get(key, "")] for key, value in defaults.items()]
    return f"`+experiment={name}`:\n\n{table(['option', 'default', 'meaning'], rows)}"


def page_of(group: str) -> str:
    return next((f"{page}.md" for page, (_, groups) in PAGES.items() if group in groups), "suites.md")


def components(page: str) -> str:
    title, groups = PAGES[page]
    text = [f"# {title}\n\n{MADE}\n\nThe options of each: `GROUP.OPTION=VALUE`."]
    return "\n\n".join(text + [group_section(group, f"{group}=") for group in groups])


def suites() -> str:
    fields = [
        [f"`suite.{key}`", shown(default_of(config.Suite, key)), meaning]
        for key, meaning in comments_of_fields(config.Suite).items()
    ]
    budget = [
        [f"`{key}`", shown(default_of(config.Budget, key)), meaning]
        for key, meaning in comments_of_fields(config.Budget).items()
    ]
    named = [[f"`suite={name}`", opening(CONF / f"suite/{name}.yaml")] for name in names_in("suite")]
    added = [
        [f"`+{group}={name}`", opening(CONF / group / f"{name}.yaml")]
        for group in ADDED
        for name in names_in(group)
        if name != "comparisons"
    ]
    experiments = [
        [f"`+experiment={name}`", opening(CONF / f"experiment/{name}.yaml").removeprefix("Question: ")]
        for name in names_in("experiment")
    ]
    return f"""# Suites, experiments and what can be added

{MADE}

## suite

A suite is a base model with its prompts, rewards and budgets ([add one](../guides/base_model.md)).

{table(["choose by", "what it is"], named)}

{table(["key", "default", "meaning"], fields)}

A budget (`suite.budgets.NAME`, chosen by `budget=NAME`):

{table(["key", "default", "meaning"], budget)}

## Added files

{table(["add by", "what it is"], added)}

## Experiments

{table(["choose by", "question"], experiments)}
"""


def launchers() -> str:
    guide = "How the jobs of a sweep are launched ([guide](../guides/sweeps.md)): `hydra.launcher.OPTION=VALUE`."
    text = [f"# Launchers and search\n\n{MADE}\n\n{guide}"]
    text += [group_section(group, f"{group}=") for group in PLUGINS]
    return "\n\n".join(text)


def group_section(group: str, prefix: str) -> str:
    """What several options of a group share, then what each has of its own."""
    files = {name: nodes_of(CONF / group / f"{name}.yaml") for name in names_in(group)}
    rows = {name: option_rows(group, name, node) for name, node in files.items()}
    having: dict[tuple[str, ...], list[str]] = {}
    for name, own in rows.items():
        for row in own:
            having.setdefault(tuple(row), []).append(name)
    shared = {row: names for row, names in having.items() if len(names) > 1}
    text = [f"## {group}"]
    if shared:
        named = [
            [*row, "all" if len(names) == len(files) else ", ".join(f"`{name}`" for name in names)]
            for row, names in shared.items()
        ]
        text.append(f"Options that several of them have:\n\n{table([*OPTION, 'of'], named)}")
    for name, node in files.items():
        text.append(f"### {prefix}{name}\n\n{first_paragraph(get_object(node['_target_']), group in BY_MODULE)}")
        if own := [row for row in rows[name] if tuple(row) not in shared]:
            text.append(table(OPTION, own))
    return "\n\n".join(text)


def option_rows(group: str, name: str, node: Mapping[str, Any]) -> list[Row]:
    target = get_object(node["_target_"])
    parameters, meanings = options_of(target)[0], arguments_of(target)
    comments = comments_in(CONF / group / f"{name}.yaml")
    rows: list[Row] = []
    for key, value in node.items():
        if not key.startswith("_"):
            own = key in parameters and target.__module__.startswith(("src.", "hydra_plugins."))
            annotation = parameters[key].annotation if own else inspect.Parameter.empty
            rows.append([f"`{key}`", shown(value), takes(annotation), meanings.get(key) or comments.get(key, "")])
    return rows


# ----------------------------------------------------------------------------------------------- what the files say


def names_in(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def raw(path: Path) -> dict[str, Any]:
    """A file of conf/ as it is written."""
    found: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return found


def nodes_of(path: Path) -> dict[str, Any]:
    """The options of a component, with those of the file that it is a delta to."""
    node = raw(path)
    parents = [each for each in node.pop("defaults", []) if isinstance(each, str) and each != "_self_"]
    for parent in parents:
        node = nodes_of(path.with_name(f"{parent}.yaml")) | node
    if "_target_" not in node:  # callbacks, each by its name
        (node,) = node.values()
    return node


def comments_in(path: Path) -> dict[str, str]:
    """What is said behind the keys of a file, on their lines and on those below that hold nothing else."""
    found: dict[str, str] = {}
    key = None
    for line in path.read_text().splitlines():
        if named := re.match(r"\s*(\w+):[^#]*#\s*(.*)", line):
            key = named[1]
            found[key] = named[2]
        elif key and (more := re.match(r"\s{8,}#\s*(.*)", line)):
            found[key] += f" {more[1]}"
        else:
            key = None
    return found


def opening(path: Path) -> str:
    """The first comment of a file, up to its end or to the command."""
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or line.startswith("# Command:"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def comments_of_fields(schema: type) -> dict[str, str]:
    """The comment of every field of a dataclass."""
    fields = re.findall(r"^    (\w+): (.*?)(?=\n    \w|\n\n|\Z)", inspect.getsource(schema), re.M | re.S)
    return {name: text.rpartition("  # ")[2].strip() if "  # " in text else "" for name, text in fields}


def default_of(schema: type, key: str) -> Any:
    defaults: Any = OmegaConf.to_container(OmegaConf.structured(schema))
    return defaults.get(key)


def first_paragraph(target: Any, by_module: bool) -> str:
    """What a component says it is; its module, where a file holds one component. Of other libraries, its name."""
    module: Any = inspect.getmodule(target)
    if not module.__name__.startswith(("src.", "hydra_plugins.")):
        return f"`{target.__module__}.{target.__name__}`."
    text = (
        not by_module and vars(target).get("__doc__") if inspect.isclass(target) else target.__doc__
    ) or module.__doc__
    return " ".join(text.split("\n\n")[0].split())


def arguments_of(target: Any) -> dict[str, str]:
    """Meanings of a constructor's arguments, by its docstring's Args and those of its parents and of what it names."""
    known = set(options_of(target)[0])
    found: dict[str, str] = {}
    for each in reversed(target.__mro__ if inspect.isclass(target) else [target]):
        text = inspect.cleandoc(vars(each).get("__doc__") or "") if inspect.isclass(each) else inspect.getdoc(each)
        said = described(text or "", known)
        for name, meaning in said.items():
            elsewhere = re.fullmatch(r"see `?([\w.]+)`?", meaning)
            found[name] = _named_in(each, elsewhere[1]).get(name, "") if elsewhere else meaning
    return found


def _named_in(target: Any, name: str) -> dict[str, str]:
    """The arguments of what a docstring names, in the words of its module."""
    scope: Any = inspect.getmodule(target)
    *modules, last = name.split(".")
    found = vars(importlib.import_module(f"{scope.__package__}.{modules[0]}") if modules else scope)[last]
    return arguments_of(found)


def described(docstring: str, known: set[str]) -> dict[str, str]:
    """`name, other: text. third: text` below Args:, for names that are known."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.M)
    if section is None:
        return {}
    entries = re.split(r"^    (?=\S)", section[1], flags=re.M)
    text = "\n".join(" ".join(entry.split()) for entry in entries if entry.strip())
    heads = re.compile(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ", re.M)
    heads_found = [m for m in heads.finditer(text) if set(m[1].split(", ")) & known]
    found: dict[str, str] = {}
    for this, after in zip(heads_found, [*heads_found[1:], None], strict=True):
        meaning = text[this.end() : after.start() if after else len(text)].split("\n")[0].strip().rstrip(".;")
        found |= dict.fromkeys(set(this[1].split(", ")) & known, meaning)
        found |= {
            name: f"of `{this[1]}`"
            for name in re.findall(r"`(\w+)`", meaning)
            if name in known and name.startswith(this[1])
        }
    return found


def takes(annotation: Any) -> str:
    """A type as a person says it."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return ""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " or ".join(takes(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (list, tuple):
        return "a list"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(annotation, getattr(annotation, "__name__", ""))


def shown(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, dict | list) and not value:
        return "none" if isinstance(value, dict) else "`[]`"
    if isinstance(value, dict):
        return "" if "_target_" in value else "by suite"
    if isinstance(value, list):
        return f"`[{','.join(map(str, value))}]`"
    words = {None: "null", True: "true", False: "false"}
    text = (
        words[value]
        if value is None or isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
    return "" if text == "???" else f"`{text}`"


def table(heading: Row, rows: Iterable[Row]) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[*heading], ["---"] * len(heading), *escaped])


# ------------------------------------------------------------------------------------------------------------ the API


def modules_of(page: str) -> list[str]:
    """Names of its modules, bases first."""
    files = [file for pattern in API[page][1] for file in sorted((ROOT / "src").glob(f"{pattern}.py"), key=_base_first)]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if not file.stem.startswith("__")]


def _base_first(file: Path) -> tuple[bool, str]:
    return file.stem != "base", file.stem


def api_page(page: str) -> str:
    blocks = "\n\n".join(f"::: {module}" for module in modules_of(page))
    return f"# {API[page][0]}\n\n{blocks}"


def api_index() -> str:
    linked = lambda module: f"[{module}](../../{module.replace('.', '/')}.py)"  # noqa: E731
    rows = [[f"[{title}]({name}.md)", ", ".join(map(linked, modules_of(name)))] for name, (title, _) in API.items()]
    return f"""# API

The pages of this table are filled from the docstrings when the site is built (`make docs`). In the repository, read the
files: each opens with what it is, and public functions say shapes, units and the errors that they raise.

{table(["page", "files"], rows)}
"""


def main(write: Callable[[Path, str], Any] = lambda path, text: path.write_text(text, encoding="utf-8")) -> None:
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        write(path, text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
