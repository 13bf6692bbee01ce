"""The arms of a sweep held against each other by one command, on runs that a study keeps."""

import re
import shutil
import sys

import pandas as pd
import pytest
from omegaconf import OmegaConf

from src.errors import UserError
from src.report import compare
from src.report.kept import restore
from tests.conftest import ROOT

KEPT = ROOT / "experiments/reset_ablation/runs"


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "kept").mkdir()
    for reset in ("none", "full"):
        for seed in (0, 1):
            shutil.copy(
                KEPT / f"reset.outgoing=redraw,reset={reset},seed={seed},study=critic.tar.xz", tmp_path / "kept"
            )
    restore(tmp_path / "kept", tmp_path / "sweep")
    return tmp_path / "sweep"


@pytest.fixture
def command(sweep, monkeypatch, capsys):
    def call(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compare", str(sweep), *options])
        compare.main()
        return capsys.readouterr().out

    return call


def test_every_arm_against_one_seed_by_seed(sweep, command):
    assert "--against ARM: aesthetic, reset=full; aesthetic, reset=none" in command()
    assert "against" not in (sweep / "tables.md").read_text()
    told = command("--against", "reset=none", "--at", "2", "9", "--at-kl", "400", "90000")
    assert re.search(r"^no run reaches 90000 nats: nothing to read there \(highest: \d{4}\)$", told, re.M)
    assert re.search(r"^\| proxy_at_kl_400 \| aesthetic, reset=full", tables(sweep), re.M)
    assert re.search(r"^no run reaches \+9: nothing to read there \(highest: \+3\.15\)$", told, re.M)
    assert "reaches +2" not in told
    found = pd.read_csv(sweep / "results.csv").pivot(index="seed", columns="arm", values="gold_at_2")
    by_hand = (found["aesthetic, reset=full"] - found["aesthetic, reset=none"]).mean()
    row = re.search(r"gold_at_2 \| aesthetic, reset=full \| aesthetic, reset=none \| 2 \| (\S+)", tables(sweep))
    assert row and float(row[1]) == pytest.approx(by_hand, rel=0.01)
    assert (
        "The critic, against aesthetic, reset=none" in tables(sweep) and (sweep / "curves.png").stat().st_size > 10_000
    )


def test_an_arm_is_named_by_what_tells_it_apart():
    arms = ["hps, reset=none", "hps, reset=random, ratio=0.1", "hps, reset=random, ratio=0.5"]
    assert compare.named("reset=none", arms) == "hps, reset=none"
    assert compare.named("ratio=0.5,reset=random", arms) == compare.named("reset.ratio=0.5", arms) == arms[2]
    with pytest.raises(UserError, match=r"reset=random fits several of the arms: hps, reset=random, ratio=0.1; "):
        compare.named("reset=random", arms)


def test_runs_on_different_rewards_are_not_compared(sweep, command, capsys):
    for folder in sweep.glob("*reset=full*"):
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("train_reward: aesthetic", "train_reward: hps"))
    with pytest.raises(SystemExit):
        command()
    assert "these runs train on aesthetic, hps; compare those of one reward" in capsys.readouterr().err


def test_controls_are_drawn_beside_the_arms_over_any_axis(sweep, command, capsys):
    """They are no arm, and have no part in the tables."""
    control = sweep / "code"
    shutil.copytree(next(sweep.glob("*reset=none*")), control)
    config = OmegaConf.load(control / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"task": "code", "code": {"block_size": 5}}), control / "config.yaml")
    sizes = {}
    for x in ("reward_queries", "kl", "iterations"):
        command("--x", x)
        assert "CoDe" not in tables(sweep) and len(pd.read_csv(sweep / "results.csv")) == 4
        sizes[x] = (sweep / "curves.png").read_bytes()
    assert len(set(sizes.values())) == 3
    shutil.rmtree(control)
    command("--x", "kl")
    assert (sweep / "curves.png").read_bytes() != sizes["kl"]
    with pytest.raises(SystemExit):
        command("--x", "reward_gradients")
    assert "has not logged reward_gradients: choose another" in capsys.readouterr().err


def tables(sweep) -> str:
    return (sweep / "tables.md").read_text()


def test_what_cannot_be_compared_is_told_in_a_sentence(sweep, command, capsys):
    for options, message in (
        (
            ["--against", "nobody"],
            "--against=nobody is none of the arms: aesthetic, reset=full; aesthetic, reset=none.",
        ),
        ([], "the finished runs differ in their seed only"),
    ):
        with pytest.raises(SystemExit) as exited:
            command(*options)
        assert exited.value.code == 2 and message in capsys.readouterr().err
        for folder in sweep.glob("*reset=full*"):
            shutil.rmtree(folder)
