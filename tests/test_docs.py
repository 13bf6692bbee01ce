"""The docs: every block of code is run or says why not, every link leads somewhere, pages are short and up to date.

A block is marked by a comment in the line before it:

    <!-- test: compose -->             commands that compose to a configuration that passes the checks
    <!-- test: parse -->               commands whose options their parsers take
    <!-- test: python -->              is executed
    <!-- test: module src.x.y -->      is that module, for the other blocks of its page
    <!-- test: yaml group/name -->     is that file of conf/, composed and checked
    <!-- test: reward name -->         is that entry of suite.rewards, likewise
    <!-- test: run -->                 commands that are run, in order, with a tiny budget (the tutorial)
    <!-- not tested: why -->
"""

import argparse
import ast
import importlib
import inspect
import os
import re
import runpy
import shlex
import sys
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from docs import generate
from src.config import check
from src.errors import UserError
from src.overrides import MULTIRUN, fault_in, understood
from tests.conftest import ROOT
from tests.forked import call_forked
from tests.test_finetuner import build, fit, new_critic

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", *sorted((ROOT / "experiments").rglob("*.md")), ROOT / "src/mini/weights/README.md"]
LINKED = [*PAGES, *OTHERS]
MARK = re.compile(r"<!-- (?:test: (\w+) ?([\w./]*)|not tested: (\S.*)) -->")
RUN = "python -m src.run"
MAINS = {name: f"{name}.__main__" for name in ("src.report", "experiments.leaderboard")}
BUDGET = ("iterations", "samples_per_iteration", "lr_ramp", "evaluation.every", "evaluation.samples_per_prompt")
TINY = ["+debug=tiny", "evaluation.max_prompts=2", "logger.mode=disabled", "threads=1"]


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    line: int  # of its fence
    mark: str  # the line before it
    text: str

    @property
    def kind(self) -> str | None:
        """How it is tested; None for not at all."""
        found = MARK.fullmatch(self.mark)
        return found[1] if found else None

    @property
    def name(self) -> str:
        found = MARK.fullmatch(self.mark)
        return found[2] if found else ""

    @property
    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        return [each for each in words if each and each[0] != "."]  # . .venv/bin/activate


def id_of(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def blocks_of(page: Path) -> list[Block]:
    lines, found, start = page.read_text(encoding="utf-8").splitlines(), [], None
    for k, line in enumerate(lines):
        if line.startswith("```"):
            if start is None:
                start = k
            else:
                mark = lines[start - 1].strip() if start else ""
                found.append(Block(page, start + 1, mark, "\n".join(lines[start + 1 : k])))
                start = None
    assert start is None, f"{page}: a block that does not end"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SPANS = sorted(
    {
        (str(page.relative_to(ROOT)), span)
        for page in PAGES
        for span in re.findall(
            rf"`({re.escape(RUN)} [^-`][^`]*|{re.escape(RUN)} -m [^`]+)`", page.read_text(encoding="utf-8")
        )
    }
)


# ------------------------------------------------------------------------------------------------------------- blocks


def test_every_block_says_how_it_is_tested():
    unmarked = [id_of(block) for block in BLOCKS if not MARK.fullmatch(block.mark)]
    assert not unmarked, f"no comment before them (tests/test_docs.py says which): {unmarked}"
    assert {block.kind for block in BLOCKS} == {None, *TESTED}


def install(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a block the module that its mark names."""
    module = types.ModuleType(block.name)
    monkeypatch.setitem(sys.modules, block.name, module)
    exec(compile(block.text, block.name, "exec"), module.__dict__)


@pytest.fixture
def of_the_page(request, monkeypatch, tmp_path):
    """The modules and files of conf/ that the page tells to write, as if they had been written."""
    block: Block = request.param
    for other in blocks_of(block.page):
        if other.kind == "module":
            install(other, monkeypatch)
        elif other.kind == "yaml":
            path = tmp_path / f"{other.name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(other.text)
    monkeypatch.setenv("CONF_OF_THE_PAGE", str(tmp_path))
    return block


def composed(words: list[str]) -> DictConfig:
    """The configuration of a command; of a sweep that of its first job."""
    assert fault_in(words) is None
    overrides = [word for word in understood(words) if word not in MULTIRUN]
    parsed = OverridesParser.create().parse_overrides(overrides)
    first = []
    for override, text in zip(parsed, overrides, strict=True):
        swept = override.is_sweep_override()
        assert not swept or words != overrides or any(word.startswith("+sweeps=") for word in words), text
        first.append(f"{text.split('=')[0]}={next(override.sweep_string_iterator())}" if swept else text)
    more = os.environ.get("CONF_OF_THE_PAGE", ".")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [*first, f"hydra.searchpath=[file://.,file://{more}]"], return_hydra_config=True)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def composes(block: Block) -> None:
    for words in block.commands:
        assert words[:3] == RUN.split(), f"{id_of(block)}: no {RUN}"
        check(composed(words[3:]))


class Parsed(Exception):
    """Options were understood."""


def parses(block: Block) -> None:
    for words in block.commands:
        assert words[:2] == ["python", "-m"]
        main = importlib.import_module(MAINS.get(words[2], words[2])).main
        with pytest.MonkeyPatch.context() as patch:
            for name in ("parse_args", "parse_intermixed_args"):
                patch.setattr(argparse.ArgumentParser, name, _and_no_more(getattr(argparse.ArgumentParser, name)))
            patch.setattr(sys, "argv", words[2:])
            with pytest.raises(Parsed):
                main()


def _and_no_more(parse):
    def parsed(parser, *args, **kwargs):
        parse(parser, *args, **kwargs)
        raise Parsed

    return parsed


def executes(block: Block) -> None:
    exec(compile(block.text, id_of(block), "exec"), {"__name__": "block"})


def is_a_module(block: Block) -> None:
    assert block.name in sys.modules  # the fixture has executed it


def is_a_choice(block: Block) -> None:
    group, name = block.name.split("/")
    cfg = composed([f"{group}={name}"])
    check(cfg)
    own = OmegaConf.create(block.text)
    if "_target_" in own:
        assert cfg[group]["_target_"] == own["_target_"]


def is_a_reward(block: Block) -> None:
    cfg = composed([])
    with open_dict(cfg):
        cfg.suite.rewards.update(OmegaConf.create(block.text))
        cfg.train_reward = block.name
    check(cfg)


TESTED = {
    "compose": composes,
    "parse": parses,
    "python": executes,
    "module": is_a_module,
    "yaml": is_a_choice,
    "reward": is_a_reward,
    "run": lambda block: (parses if "src.report" in block.text else composes)(block),  # test_the_tutorial runs them
}


@pytest.mark.parametrize("of_the_page", [block for block in BLOCKS if block.kind], ids=id_of, indirect=True)
def test_a_block(of_the_page):
    TESTED[of_the_page.kind](of_the_page)


@pytest.mark.parametrize(("page", "span"), SPANS)
def test_a_command_within_a_line(page, span):
    check(composed(shlex.split(span)[3:]))


@pytest.fixture
def guides(monkeypatch):
    """The modules that the guides tell to write; tests/test_methods.py trains with the algorithm."""
    for block in BLOCKS:
        if block.kind == "module":
            install(block, monkeypatch)


def test_what_the_guides_add_trains(guides):
    reward = importlib.import_module("src.rewards.sharpness").Sharpness()
    regulariser = importlib.import_module("src.regularisers.free_nats").FreeNats(beta=1.0, free=0.0)
    reset = importlib.import_module("src.resets.proportional").ProportionalReset(every=1, ratio=0.5)
    (row,) = fit(build(reward=reward, critic=new_critic(), reset=reset, regulariser=regulariser, lr=1e-4), 1, 4)
    assert row["regulariser/loss"] > 0 and 0 < row["reset/share"] < 1
    shrunk = importlib.import_module("src.resets.shrink_perturb").ShrinkPerturbReset
    finetuner = build(critic=new_critic(), reset=shrunk(every=1, shrink=0.0, perturb=0.0))
    (row,) = fit(finetuner, 1, 4)
    assert row["reset/share"] == 1 and not any(layer.weight.any() for layer in finetuner.critic.head.linears)
    with pytest.raises(UserError, match=r"ShrinkPerturbReset has no select, by which LoRA's ranks are reset"):
        shrunk(where="both")


def test_the_commands_that_help_shows():
    template = OmegaConf.load(ROOT / "conf/config.yaml").hydra.help._get_node("template")._value()
    commands = re.findall(rf"^ *{re.escape(RUN)} (.*?)(?:   .*)?$", template, re.M)
    assert len(commands) == 8
    for command in commands:
        check(composed([word for word in shlex.split(command) if word not in ("--cfg", "job")]))


# ------------------------------------------------------------------------------------------------------- the tutorial


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    """Its commands one after the other, each for two iterations."""
    page = blocks_of(ROOT / "docs/tutorial.md")
    modules = [(block.name, block.text) for block in page if block.kind == "module"]
    commands = [words for block in page if block.kind == "run" for words in block.commands]
    assert len(commands) == 4 and [words[2] for words in commands] == [*["src.run"] * 3, "src.report"]
    done = call_forked(in_order, modules, [tiny(words, tmp_path) for words in commands])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("colourful (trained)") == 3 and done.stdout.count("watch: ") >= 3
    assert "KLReward" in (tmp_path / "both.html").read_text()


def tiny(words: list[str], folder: Path) -> list[str]:
    """The same command with the budget of a test, which writes into this folder."""
    kept = [word for word in words[2:] if word.split("=")[0] not in BUDGET]
    here = [re.sub(r"^(run_dir=)?(runs/|both)", lambda found: f"{found[1] or ''}{folder}/{found[2]}", w) for w in kept]
    return here + TINY if words[2] == "src.run" else here


def in_order(modules: list[tuple[str, str]], commands: list[list[str]]) -> None:
    for name, text in modules:
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(text, name, "exec"), module.__dict__)
    for words in commands:
        sys.argv = words
        GlobalHydra.instance().clear()
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


# ------------------------------------------------------------------------------------------------- links, lengths, age


def plain(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)


def anchors_of(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    slugs: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found.add(f"{slug}_{slugs[slug]}" if slugs[slug] else slug)
        slugs[slug] += 1
    return found


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether the repository has what a page links to, and its heading; of others' addresses the form alone."""
    if re.match(r"[a-z]+:", target):
        address = urlsplit(target)
        return address.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc) is not None
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and file.is_relative_to(ROOT) and (not anchor or anchor in anchors_of(file))


def links_of(page: Path) -> list[str]:
    """What a page links to. Every link of it is `[text](target)`, of any other form none would be checked."""
    text = plain(page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^()\s]+)\)", text)
    assert len(found) == len(re.findall(r"\]\(|\]\[|^\[[^]]+\]:|\bhref=|\bsrc=|<https?:", text, re.M))
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not [target for target in links_of(page) if not leads_somewhere(page, target)]


@pytest.mark.parametrize(
    ("target", "there"),
    [
        ("docs/concepts.md", True),
        ("docs/concepts.md#kl-from-the-base", True),
        ("docs/concepts.md#no-such-heading", False),
        ("docs/no_such_page.md", False),
        ("/etc/hosts", False),
        ("https://arxiv.org/abs/2402.08552", True),
        ("http://arxiv.org", False),
        ("https:/arxiv.org", False),
        ("https://arxiv", False),
    ],
)
def test_a_link_that_leads_nowhere_is_found(target, there):
    assert leads_somewhere(ROOT / "README.md", target) == there


def test_pages_are_short():
    pages = [page for page in LINKED if page.name != "tables.md"]  # which are figures, as a study writes them
    lengths = {str(page.relative_to(ROOT)): len(page.read_text(encoding="utf-8").splitlines()) for page in pages}
    assert not {page: length for page, length in lengths.items() if length > 300}
    assert lengths["README.md"] <= 200 and (ROOT / "README.md").stat().st_size <= 12_000


def test_pages_that_are_made_from_the_code_are_up_to_date():
    made = generate.pages()
    stale = [
        str(path.relative_to(ROOT)) for path, text in made.items() if not path.exists() or path.read_text() != text
    ]
    assert not stale, "python -m docs.generate writes them anew"
    there = {path for folder in ("api", "configuration") for path in (ROOT / "docs" / folder).rglob("*.md")}
    assert there == {path for path in made if path.parent != ROOT / "docs"}


def test_the_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    found = set(re.findall(r"[\w/]+\.md", str(site["nav"])))
    assert found == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")} | {
        "index.md"  # README.md
    }


# ---------------------------------------------------------------------------------------------------------- docstrings


def public_methods(path: Path) -> list[tuple[str, str, bool]]:
    """(class, method, whether it has a docstring) of a file's public classes."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return [
        (each.name, method.name, ast.get_docstring(method) is not None)
        for each in classes
        for method in each.body
        if isinstance(method, ast.FunctionDef) and "_" not in (each.name[0], method.name[0])
    ]


def has_inherited_docstring(of: type, name: str) -> bool:
    inherited = (vars(base)[name] for base in of.__mro__[1:] if name in vars(base))
    return any(map(inspect.getdoc, inherited))


@pytest.mark.parametrize("folder", ["src", "hydra_plugins"])
def test_a_public_method_has_a_docstring_or_one_of_its_base(folder):
    """Ruff asks for those of functions and classes; it does not know what a method inherits."""
    missing = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        bare = [(of, method) for of, method, documented in public_methods(path) if not documented]
        module = importlib.import_module(name) if bare else None
        missing += [f"{name}.{of}.{m}" for of, m in bare if not has_inherited_docstring(getattr(module, of), m)]
    assert not missing


# ------------------------------------------------------------------------------------------------------ error sentences


def sentence_in(node: ast.expr) -> str:
    """What an expression says, with {} for what it fills in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(sentence_in, parts))
        case ast.FormattedValue(value=value):
            return sentence_in(value)
        case ast.BinOp(left=left, right=right):
            return sentence_in(left) + sentence_in(right)
        case ast.IfExp(body=one, orelse=other):
            return f"{sentence_in(one)}\n{sentence_in(other)}"
        case _:
            return "{}"


def told_errors() -> dict[str, str]:
    """The sentence of every UserError and TrainingError of the product, by its place."""
    found = {}
    for file in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "TrainingError"):
                found[f"{file.relative_to(ROOT)}:{node.lineno}"] = sentence_in(node.args[0])
    words = {place: re.sub(r"[\w.-]+=\{\}", "", told) for place, told in found.items()}
    return {place: told for place, told in found.items() if re.search("[a-z]{4}", words[place])}  # others' words apart


def test_every_error_sentence_is_of_a_kind_that_troubleshooting_lists():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    kinds = [kind for row in re.findall(r"^\| (`.*?) \|", page, re.M) for kind in re.findall(r"`([^`]+)`", row)]
    told = told_errors()
    unlisted = {place: sentence for place, sentence in told.items() if not any(kind in sentence for kind in kinds)}
    assert not unlisted, "docs/troubleshooting.md has no row for them"
    everything = "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    everything = re.sub(r'"\s*\n\s*f?"', "", everything)  # sentences over several lines
    assert not [kind for kind in kinds if kind not in everything and not any(kind in each for each in told.values())]
