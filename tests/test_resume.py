"""What a kill costs a run: nothing. And what evaluating it costs training: nothing either."""

import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from src.loggers.wandb_files import sessions
from tests.conftest import LONGER, rows_of
from tests.forked import run_forked, started

slow = pytest.mark.slow


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def untimed(state: object) -> object:
    """The state without how long anything took."""
    if isinstance(state, dict):
        return {k: untimed(v) for k, v in state.items() if k not in ("seconds", "phase_seconds")}
    return [untimed(v) for v in state] if isinstance(state, list | tuple) else state


def final_state(folder: Path) -> dict:
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return untimed({key: checkpoint[key] for key in ("state_dict", "optimizer_states", "progress", "callbacks")})


def kept_by_the_watch(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "best").rglob("*") if p.is_file()}


def timeless(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(folder)]


def kill_at(folder: Path, moment: str, overrides: list[str]) -> None:
    """Starts a run and kills it when a file of its folder appears, or when its metrics hold so many rows."""
    with tempfile.TemporaryDirectory() as told:
        process = started(overrides, Path(told))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.is_alive(), f"ended before {moment}: {Path(told, 'err').read_text()[-2000:]}"
            if len(_lines(folder)) >= int(moment[4:]) if moment.startswith("row") else (folder / moment).exists():
                break
            time.sleep(5e-4)  # a loop that spins would take the run's core
        process.kill()
        process.join()


def _lines(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


# before the first row; while the first checkpoint is written; with a checkpoint of iteration 2, between the evaluation
# after iteration 3 and the watch's look at it
MOMENTS = [pytest.param("best.partial", marks=slow), pytest.param("checkpoints/last.partial", marks=slow), "row 6"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_uninterrupted(finished, tmp_path, moment):
    folder = tmp_path / "killed"
    kill_at(folder, moment, [*LONGER, "logger.mode=offline", f"run_dir={folder}"])
    assert (folder / "checkpoints/last.ckpt").exists() or not moment.startswith("row")
    resumed = run_forked(f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert timeless(folder) == timeless(finished)
    assert same(final_state(folder), final_state(finished))
    assert kept_by_the_watch(folder) == kept_by_the_watch(finished)
    sent = [row for session in sessions(folder) for row in session.rows().values()]
    assert sent == [(row["kind"], row["iteration"]) for row in rows_of(folder)]  # each once, in order


@pytest.mark.slow
def test_lora_and_the_resets_of_its_ranks_go_on_too(tmp_path):
    """The random resets of the last iterations draw anew, and their overlap is with masks of before the kill."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = [*LONGER, "policy=lora", "reset=random", "reset.where=both", "reset.ratio=0.5"]
    assert run_forked(*options, f"run_dir={whole}").returncode == 0
    kill_at(killed, "row 6", [*options, f"run_dir={killed}"])
    assert run_forked(f"resume={killed}").returncode == 0
    assert timeless(killed) == timeless(whole) and same(final_state(killed), final_state(whole))
    assert any(row.get("reset/lora_overlap") for row in rows_of(whole))


def test_a_finished_run_can_be_extended(finished, tmp_path):
    folder = tmp_path / "extended"
    shutil.copytree(finished, folder)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    del stored["pool"]  # as if it had been started before there was such a key
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    done = run_forked(f"resume={folder}", "iterations=7")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["iteration"] for row in rows_of(folder, "iteration")] == [1, 2, 3, 4, 5, 6, 7]
    kill_at(folder, f"row {len(rows_of(folder)) + 1}", [f"resume={folder}", "iterations=99"])
    assert not (folder / "summary.json").exists()  # or a sweep would take it for finished


def test_a_run_that_the_watch_stopped_stays_stopped(tmp_path):
    folder = tmp_path / "run"
    stop = ["callbacks.watch.action=stop", "callbacks.watch.margin=0", "evaluation.every=1", "optimizer.lr=1e-2"]
    done = run_forked(*LONGER, *stop, f"run_dir={folder}")
    assert done.returncode == 0 and "watch: alarm after" in done.stdout, done.stdout + done.stderr[-2000:]
    iterations = len(rows_of(folder, "iteration"))
    assert iterations < 6 and torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["progress"]["stopped"]
    (folder / "summary.json").unlink()  # as if it had been killed before it had summed up
    assert run_forked(f"resume={folder}").returncode == 0
    assert len(rows_of(folder, "iteration")) == iterations and (folder / "summary.json").exists()


@pytest.mark.slow
def test_evaluation_does_not_change_training(finished, tmp_path):
    folder = tmp_path / "run"
    changes = ["evaluation.every=100", "evaluation.samples_per_prompt=2", "evaluation.seed=5"]
    done = run_forked(*LONGER, *changes, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    training = lambda run: [row for row in timeless(run) if row["kind"] == "iteration"]  # noqa: E731
    assert training(folder) == training(finished)
    for part in ("state_dict", "optimizer_states", "progress"):
        assert same(final_state(folder)[part], final_state(finished)[part])
