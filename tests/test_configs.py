"""Every YAML composes, resolves, and passes the checks; misspelt or mistyped keys do not."""

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from src.config import check
from src.errors import UserError
from tests.conftest import ROOT, composed

CONF = ROOT / "conf"
NOT_OPTIONS = (CONF / "debug/tiny.yaml", CONF / "reward_training/comparisons.yaml")
GROUPS = sorted(p for p in CONF.glob("*/*.yaml") if p.parent.name != "experiment" and p not in NOT_OPTIONS)
EXPERIMENTS = sorted((ROOT / "conf/experiment").glob("*.yaml"))
NEEDS = {"prompts/file": ["prompts.path=some.txt"]}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_all_files_are_found():
    assert len(GROUPS) == 23
    assert len(EXPERIMENTS) == 8
    assert (
        len(list((ROOT / "conf").rglob("*.yaml"))) == len(GROUPS) + len(EXPERIMENTS) + 3
    )  # config, debug/tiny, comparisons


@pytest.mark.parametrize("path", GROUPS, ids=name_of)
def test_every_option_of_every_group(path):
    group = path.parent.name
    plus = "+" if group == "reward_training" else ""  # of no use to a fine-tuning run, and so not in the defaults
    resolved = check(composed(f"{plus}{group}={path.stem}", *NEEDS.get(name_of(path), [])))
    assert resolved["seed"] == 0


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
@pytest.mark.parametrize("extra", [[], ["+debug=tiny"], ["budget=study"]], ids=["plain", "tiny", "study"])
def test_every_experiment(path, extra):
    resolved = check(composed(f"+experiment={path.stem}", *extra))
    assert path.stem.endswith(resolved["train_reward"])
    head = path.read_text()
    assert "# Question:" in head and f"+experiment={path.stem}" in head  # each opens with question and command


@pytest.mark.parametrize("override", ["iteratoins=3", "reset.ration=0.1", "+algoritm=tdpo"])
def test_a_misspelt_key_on_the_command_line_fails(override):
    with pytest.raises((ConfigCompositionException, UserError)):
        check(composed(override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+reset.ration=0.1", "did you mean ratio"),
        ("+optimizer.learning_rate=1", "optimizer.learning_rate is not an option"),
        ("reset.ratio=often", "reset.ratio='often' is of the wrong type"),
        ("algorithm.schedule=sometimes", "algorithm.schedule='sometimes' is of the wrong type"),
        ("train_reward=hpz", "train_reward=hpz is not a reward of suite=mini"),
        ("iterations=0", "iterations=0 must be at least 1"),
        ("algorithm.samples_per_update=48", "not a multiple"),
        ("seed=-1", "seed=-1"),
        ("prompts=file", "Missing mandatory value"),
        ("reset._target_=src.resets.sometimes.Reset", "cannot be imported"),
    ],
)
def test_what_yaml_would_let_through_fails_with_a_sentence(override, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as told:
        check(composed(override))
    assert "\n" not in str(told.value)
