"""Every YAML composes, resolves, and passes the checks; misspelt or mistyped keys do not."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from src.config import check
from src.errors import UserError
from tests.conftest import ROOT, composed

CONF = ROOT / "conf"
NOT_OPTIONS = (CONF / "debug/tiny.yaml", CONF / "reward_training/comparisons.yaml")
GROUPS = sorted(p for p in CONF.glob("*/*.yaml") if p.parent.name != "experiment" and p not in NOT_OPTIONS)
EXPERIMENTS = sorted((ROOT / "conf/experiment").glob("*.yaml"))
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
PLUGINS = sorted((CONF / "hydra").glob("*/*.yaml"))
NEEDS = {"prompts/file": ["prompts.path=some.txt"], "prompts/parquet": ["prompts.path=some.parquet"]}
EXTRA = ("reward_training", "preset", "ensemble", "study", "wrapper", "reward")  # groups that are not in the defaults
SUITES = ("sd14", "sd14_single_gpu", "sd15_single_gpu")


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def each_by_turns(firsts: Iterable, seconds: Sequence) -> Iterator:
    """All pairs, of which each first has one in `make test`, with the seconds by turns; -m slow has the others."""
    for i, first in enumerate(firsts):
        for j, second in enumerate(seconds):
            marks = [] if i % len(seconds) == j else [pytest.mark.slow]
            named = name_of(first) if isinstance(first, Path) else first
            yield pytest.param(first, second, marks=marks, id=f"{named}-{second}")


def test_all_files_are_found():
    assert len(GROUPS) >= 59  # and what is added
    assert len(EXPERIMENTS) >= 34
    assert len(SWEEPS) >= 6
    assert len(PLUGINS) >= 5
    others = 3  # config, debug/tiny, comparisons
    assert len(list(CONF.rglob("*.yaml"))) == len(GROUPS) + len(EXPERIMENTS) + len(PLUGINS) + others


@pytest.mark.parametrize("path", GROUPS, ids=name_of)
def test_every_option_of_every_group(path):
    group = path.parent.name
    plus = "+" if group in EXTRA else ""
    resolved = check(composed(f"{plus}{group}={path.stem}", *NEEDS.get(name_of(path), [])))
    assert resolved["seed"] == 0


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment(path):
    resolved = check(composed(f"+experiment={path.stem}"))
    trained = resolved["train_reward"]
    if path.stem == "evaluate":
        assert trained is None  # of weights of others it may not be known
    else:
        assert path.stem.endswith(trained) or trained == "hps"  # +experiment=grpo ...
    head = path.read_text()
    assert "# Question:" in head and f"+experiment={path.stem}" in head  # each opens with question and command


@pytest.mark.parametrize(
    ("path", "change"), each_by_turns(EXPERIMENTS, ["+debug=tiny", "budget=study", "suite=mini_flow"])
)
def test_every_experiment_changed(path, change):
    resolved = check(composed(f"+experiment={path.stem}", change))
    assert resolved["policy"]["path"].endswith("flow") == (change == "suite=mini_flow")


@pytest.mark.parametrize(("path", "suite"), each_by_turns(EXPERIMENTS, SUITES))
def test_every_experiment_at_the_papers_scale(path, suite):
    cfg = composed(f"+experiment={path.stem}", f"suite={suite}")
    if cfg.task.value == "train_reward":
        with pytest.raises(UserError, match="choose suite=mini"):
            check(cfg)
        return
    if cfg.train_reward == "ensemble":
        with pytest.raises(UserError, match=r"pool=8, and give each member's mean .*\+suite.base_moments.hps={mean: "):
            check(cfg)
        told = [f"+suite.base_moments.{name}={{mean: 1, std: 2}}" for name in ("hps", "pickscore", "imagereward")]
        check(composed(f"+experiment={path.stem}", f"suite={suite}", *told))
        return
    resolved = check(cfg)
    assert set(resolved["suite"]["rewards"]) == {"hps", "pickscore", "imagereward", "aesthetic"}
    paper = {"num_steps": 50, "guidance": 5.0, "samples_per_iteration": 256, "iterations": 100}
    assert {key: resolved[key] for key in paper} == paper
    policy, algorithm = resolved["policy"], resolved["algorithm"]
    assert (policy["finetune"], policy["lora_rank"], policy["eta"]) == ("lora", 4, 1.0)
    assert policy["lora_targets"] == ["to_q", "to_k", "to_v", "to_out.0"]
    if not path.stem.startswith(("ddpo", "tdpo", "best_of_n")):
        return  # no method of the paper
    assert resolved["samples_per_prompt"] == 1
    assert (algorithm["clip_range"], algorithm["timestep_weighting"]) == (1e-4, "uniform")
    assert resolved["optimizer"]["lr"] == (1e-4 if algorithm["schedule"] == "timestep" else 3e-4)
    check(composed(f"+experiment={path.stem}", f"suite={suite}", "+debug=tiny"))


LARGER = {"sdxl": (30, 5.0), "sdxl_single_gpu": (30, 5.0), "sd35": (10, 4.5), "sd35_single_gpu": (10, 4.5)}


@pytest.mark.parametrize(
    ("experiment", "suite"), each_by_turns(["tdpo_r_hps", "grpo", "draft", "nft", "best_of_n_hps"], list(LARGER))
)
def test_experiments_on_larger_models(experiment, suite):
    resolved = check(composed(f"+experiment={experiment}", f"suite={suite}"))
    assert (resolved["num_steps"], resolved["guidance"]) == LARGER[suite]
    assert len(resolved["suite"]["revision"]) == 40 and resolved["trainer"]["precision"] == "bf16-mixed"
    assert resolved["evaluation"]["num_steps"] == (28 if suite.startswith("sd35") else None)
    assert resolved["policy"]["drop_text_encoders"] == suite.endswith("single_gpu")
    check(composed(f"+experiment={experiment}", f"suite={suite}", "+debug=tiny", "policy.sde_steps=2"))


def test_one_key_takes_the_weights_from_disk():
    resolved = check(composed("suite=sd14", "suite.base=some/folder", "suite.rewards.hps.path=HPS_v2_compressed.pt"))
    assert resolved["policy"]["path"] == "some/folder"
    assert resolved["suite"]["rewards"]["hps"]["path"] == "HPS_v2_compressed.pt"
    revisions = [resolved["suite"]["revision"], resolved["suite"]["tower"]["revision"]]
    revisions += [reward["revision"] for reward in resolved["suite"]["rewards"].values()]
    assert all(len(revision) == 40 for revision in revisions)  # commits, not branches


@pytest.mark.parametrize("experiment", ["tdpo_r_hps", "tdpo_hps"])
def test_the_official_preset_makes_the_authors_choices(experiment):
    resolved = check(composed(f"+experiment={experiment}", "suite=sd14", "+preset=official"))
    critic, algorithm = resolved["critic"], resolved["algorithm"]
    assert (critic["activation"], critic["timestep_input"], resolved["reset"]["outgoing"]) == ("none", False, "redraw")
    assert (algorithm["normalise_over"], algorithm["samples_per_update"]) == ("all", 128)
    kept = check(composed(f"+experiment={experiment}", "suite=sd14", "+preset=official", "critic.activation=relu"))
    assert kept["critic"]["activation"] == "relu"


def with_hydra(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_job_of_every_sweep(path):
    command = re.search(
        rf"# Command: +python -m src.run (\+experiment=\w+) (\+sweeps={path.stem})$", path.read_text(), re.M
    )
    master = with_hydra(*command.groups())
    params = OmegaConf.to_container(master.hydra.sweeper, resolve=True)["params"]
    told = {"reset_ratio": 12, "reset_strategy": 15, "reset_period": 12, "method_2x2": 12, "best_ratio": 1}
    count = told.get(path.stem, 3 * len(master.suite.rewards))
    given = [f"{key}={value}".replace("interval(0.05, 1.0)", "0.05") for key, value in params.items()]
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)[0]
    assert len(jobs) == count and master.hydra.mode.name == "MULTIRUN" and "# Question:" in path.read_text()
    if path.stem not in ("reward_matrix", "best_ratio"):
        assert f"# Runs:     {count} (" in path.read_text()
    configs = [check(composed(*command.groups(), *job)) for job in jobs if "seed=0" in job]
    assert len({str(config) for config in configs}) == len(configs) > 0
    for config, job in zip(configs, [job for job in jobs if "seed=0" in job], strict=True):
        chosen = dict(override.split("=") for override in job)
        assert config["reset"]["_target_"].split(".")[2] == chosen.get("reset", "active")
        assert config["algorithm"]["_target_"].split(".")[2] == chosen.get("algorithm", "tdpo")
        assert config["algorithm"]["schedule"] == chosen.get("algorithm.schedule", "timestep")


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_every_launcher_and_sweeper(path):
    node = with_hydra(f"hydra/{path.parent.name}={path.stem}").hydra[path.parent.name]
    assert node._target_.startswith("hydra_plugins.") and get_object(node._target_)


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
        ("prompts=file", "prompts.path is missing: give prompts.path=VALUE"),
        ("reset._target_=src.resets.randm.Reset", "there is no module src.resets.randm: it has random."),
        ("reset._target_=src.resets.active.ActivReset", "src/resets/active.py has no ActivReset: it has ActiveReset."),
        ("reset._target_=src.resets.active", "src.resets.active is no class: give MODULE.CLASS: it has ActiveReset."),
        ("reset._target_=ActiveReset", "ActiveReset is no MODULE.CLASS, such as src.resets.active.ActiveReset."),
        ("reset={_target_: builtins.object}", "object is no src.resets.base.Reset: let its class inherit from that."),
        ("+experment=ddpo", "did you mean +experiment"),
        ("+suite.nmae=1", "suite.nmae is not an option of suite: did you mean name"),
    ],
)
def test_what_yaml_would_let_through_fails_with_a_sentence(override, message):
    with pytest.raises(UserError, match=re.escape(message)) as told:
        check(composed(override))
    assert "\n" not in str(told.value)
