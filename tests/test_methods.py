"""What holds for every algorithm and every regulariser: a kill costs nothing, and two ranks are one."""

import signal
from pathlib import Path

import pytest
import torch

from tests.forked import call_forked
from tests.methods import CASES, configured, run_in
from tests.test_resume import same, timeless, untimed

QUICK = ("nft", "draft", "kl_reward", "kl_loss", "gardo", "ema")  # they keep something that no other keeps
KILLED = "+callbacks.kill={_target_: tests.methods.Killed, after: 3}"


def cases(quick: tuple[str, ...]) -> list:
    """Cases that are not quick are slow."""
    marks = [[] if case[case[0] == "ddpo"] in quick else [pytest.mark.slow] for case in CASES]
    return [pytest.param(case, id="-".join(case), marks=mark) for case, mark in zip(CASES, marks, strict=True)]


def state(folder: Path) -> dict:
    kept = torch.load(folder / "state.ckpt", weights_only=True)
    return untimed({key: kept[key] for key in ("state_dict", "optimizer_states", "progress", "callbacks")})


@pytest.mark.parametrize("case", cases(QUICK))
def test_killed_and_resumed_equals_uninterrupted(case, tmp_path):
    """A run of three iterations is killed after the third, of which only the second was kept, and goes on from there."""
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
