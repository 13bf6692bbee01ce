"""Curves without an account: `logger=tensorboard` has the figures of metrics.jsonl, `logger=none` nothing."""

import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.errors import UserError
from src.loggers.tensorboard import make_tensorboard_logger
from tests.conftest import rows_of
from tests.forked import run_forked

SMALL = ["+experiment=ddpo_hps", "+debug=tiny", "threads=1", "evaluation.max_prompts=2", "evaluation.every=1"]


def shown(folder) -> EventAccumulator:
    """What TensorBoard has of a run."""
    return EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0}).Reload()


def test_tensorboard_has_every_row_once_after_a_resume(tmp_path):
    """Of a run that was cut back to its first checkpoint, as a kill in the second iteration leaves it."""
    folder = tmp_path / "run"
    done = run_forked(*SMALL, "logger=tensorboard", f"run_dir={folder}", "checkpoint_every=1", "iterations=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"curves: tensorboard --logdir {tmp_path}" in done.stdout and not (folder / "wandb").exists()
    beyond = make_tensorboard_logger(folder, {}, 2, rows_of(folder, "iteration"))
    beyond.log_metrics({"reward_queries": 8, "reward/hps/mean": 1e9})  # and then it was killed
    done = run_forked(f"resume={folder}", "iterations=2")
    assert done.returncode == 0, done.stderr[-2000:]
    found = shown(folder)
    for kind, key in (("iteration", "reward/hps/mean"), ("evaluation", "eval/gold/gain")):
        rows = rows_of(folder, kind)
        assert [event.step for event in found.Scalars(key)] == [row["reward_queries"] for row in rows]
        values = torch.tensor([event.value for event in found.Scalars(key)])
        torch.testing.assert_close(values, torch.tensor([row[key] for row in rows]))
    assert len(found.Images("samples")) == 3 and "config/text_summary" in found.Tags()["tensors"]


def test_without_a_tracker_the_rows_and_the_report_are_left(tmp_path):
    done = run_forked(*SMALL, "logger=none", f"run_dir={tmp_path / 'run'}", "iterations=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows_of(tmp_path / "run", "evaluation")) == 2 and (tmp_path / "run/report.html").exists()
    assert not {"wandb", "tensorboard"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_tensorboard_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"logger=tensorboard needs TensorBoard: pip install 'overopt\[tensorboard\]'"):
        make_tensorboard_logger(tmp_path, {})
