"""What holds for every algorithm and every regulariser: a kill costs nothing, two ranks are one. And how to add one."""

import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.bandit import Bandit
from tests.forked import call_forked, places, started_call
from tests.methods import CASES, configured, run_in, train, written_in
from tests.test_bandit import D, G, S, assert_gradient, estimated_gradient
from tests.test_resume import same, timeless, untimed

REMEMBERING = ("nft", "kl_loss", "gardo", "ema")  # what no other of these remembers
ACROSS_RANKS = ("dpo_online", "gardo")  # pairs; statistics of all samples, and rows by their place among them
KILLED = "+callbacks.kill={_target_: tests.methods.Killed, after: 3}"


def cases(quick: tuple[str, ...]) -> list:
    """Cases that are not quick are slow."""
    marks = [[] if case[case[0] == "ddpo"] in quick else [pytest.mark.slow] for case in CASES]
    return [pytest.param(case, id="-".join(case), marks=mark) for case, mark in zip(CASES, marks, strict=True)]


# ------------------------------------------------------------------------------------------------------------- a kill


def state(folder: Path) -> dict:
    kept = torch.load(folder / "state.ckpt", weights_only=True)
    return untimed({key: kept[key] for key in ("state_dict", "optimizer_states", "progress", "callbacks")})


@pytest.mark.parametrize("case", cases(REMEMBERING))
def test_killed_and_resumed_equals_uninterrupted(case, tmp_path):
    """A run is killed after its third iteration, when the second has been kept, and goes on from there."""
    cfg = configured(case, tmp_path / "run", "iterations=3", "checkpoint_every=2", "evaluation.every=3", KILLED)
    rows, states = [], []
    for _ in range(2):
        done = call_forked(run_in, cfg)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        rows.append(timeless(tmp_path / "run"))
        states.append(state(tmp_path / "run"))
    assert [row["iteration"] for row in rows[0] if row["kind"] == "iteration"] == [1, 2, 3]
    assert rows[0] == rows[1]
    assert same(*states)


# ---------------------------------------------------------------------------------------------------------- two ranks


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory) -> tuple[Path, Path]:
    """All cases that this session asks for, by one process, and by a pair of them that goes through all in turn."""
    own = [item for item in request.session.items if item.path == Path(__file__)]
    asked = [item.callspec.params["case"] for item in own if item.name.startswith("test_two_ranks")]
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        told = [Path(folder) for folder in (first, second)]
        pair = [started_call(at, train, asked, two, place) for at, place in zip(told, places(2), strict=True)]
        for process, at in zip(pair, told, strict=True):
            process.join(300)
            assert process.exitcode == 0, (at / "err").read_text()[-3000:]
    done = call_forked(train, asked, one, {})
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


@pytest.mark.parametrize("case", cases(ACROSS_RANKS))
def test_two_ranks_take_the_steps_that_one_takes(case, trained):
    one, two = (torch.load(folder / f"{'-'.join(case)}.pt") for folder in trained)
    assert one["row"] == pytest.approx(two["row"], rel=1e-3, abs=1e-4)
    for name in ("gradients", "averaged"):
        for a, b in zip(one[name], two[name], strict=True):
            assert a.norm() > 0 or name == "averaged"
            assert (a - b).norm() <= 1e-3 * a.norm(), name


# ------------------------------------------------------------------------------------------------- critic and resets


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("dpok", marks=pytest.mark.slow)])
def test_other_policy_gradients_take_a_critic_and_resets(algorithm, tmp_path):
    """Its values come off the returns; it learns, and its neurons are reset."""
    train([(algorithm, "none")], tmp_path, {}, "algorithm.baseline=critic", "reset=active", "reset.every=1")
    left = torch.load(tmp_path / f"{algorithm}-none.pt")
    assert len(left["gradients"]) == 2 and left["row"]["critic/loss"] > 0 and left["row"]["critic/value_std"] > 0
    assert left["row"]["reset/share"] > 0


# --------------------------------------------------------------------------------------------- adding an algorithm


@pytest.fixture
def added(tmp_path, monkeypatch) -> Path:
    return written_in("docs/adding_an_algorithm.md", tmp_path, monkeypatch)


def test_the_algorithm_of_the_guide_trains(added, tmp_path):
    train([("rwr", "kl_loss")], tmp_path, {}, f"hydra.searchpath=[file://{added}]")
    left = torch.load(tmp_path / "rwr-kl_loss.pt")
    assert left["gradients"][0].norm() > 0 and left["row"]["regulariser/loss"] > 0
    assert left["row"]["reward_queries"] == 12


def test_the_algorithm_of_the_guide_has_the_gradient_that_it_says(added):
    """E[w (x_0 - theta)] = s^2 g / temperature, w = exp(r / temperature) / E exp(r / temperature), r = g . x_0."""
    algorithm, bandit = sys.modules["src.algorithms.rwr"].RWR(temperature=0.5), Bandit(std=S)
    ratio = bandit.alpha_bar / (1 - bandit.alpha_bar)
    assert_gradient(estimated_gradient(algorithm, bandit, chunks=20, n=20_000), -2 * ratio / D * S**2 * G / 0.5)


def test_the_method_of_the_leaderboards_guide_trains(tmp_path, monkeypatch):
    conf = written_in("docs/guides/enter_your_method.md", tmp_path, monkeypatch)
    train([("sign", "none")], tmp_path, {}, f"hydra.searchpath=[file://{conf}]")
    assert torch.load(tmp_path / "sign-none.pt")["gradients"][0].norm() > 0
    credit = sys.modules["src.algorithms.sign"].SignDDPO(clip_range=1.0, advantage_clip=5.0).credit
    told = credit(torch.tensor([[0.2, 0.1], [-3.0, -2.0]]), torch.ones(2), None)
    assert told.advantages.tolist() == [[1, 1], [-1, -1]]  # whatever their size
