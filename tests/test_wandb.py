"""What W&B gets of a run: every row and picture, in its own file; and a server that cannot be reached costs nothing."""

import json
import math
import os
from pathlib import Path

import pytest

from src.errors import UserError
from src.loggers.wandb import make_wandb_logger
from src.loggers.wandb_files import records, values_of
from tests.conftest import rows_of
from tests.forked import run_forked

TINY = ["+experiment=tdpo_r_hps", "+debug=tiny", "threads=1"]


def history_of(folder: Path) -> list[dict]:
    """Rows of the run's only session."""
    return [values for _, record in records(wandb_file(folder)) if (values := values_of(record))]


def wandb_file(folder: Path) -> Path:
    return next(folder.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    for key in [key for key in os.environ if key.startswith("WANDB")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_offline_file_holds_every_row_and_picture(tmp_path):
    folder = tmp_path / "run"
    done = run_forked(*TINY, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = history_of(folder)
    assert len(rows) == len(rows_of(folder)) == 6  # 2 iterations, 2 evaluations, 2 looks of the watch
    media = ("samples/", "pictures_and_scores/", "hacks/", "_", "trainer/global_step")
    for ours, theirs in zip(rows_of(folder), rows, strict=True):
        assert ours.keys() == {key for key in theirs if not key.startswith(media)}
        assert all(v == theirs[k] or math.isclose(v, theirs[k], rel_tol=1e-12) for k, v in ours.items())
    pictures = [row for row in rows if "samples/path" in row]
    assert [row["kind"] for row in pictures] == ["evaluation"] * 2
    files = wandb_file(folder).parent / "files"
    assert all((files / row["samples/path"]).stat().st_size == row["samples/size"] for row in pictures)
    tables = [json.loads((files / row["pictures_and_scores/path"]).read_text()) for row in pictures]
    assert all({"prompt", "seed", "picture", "hps", "gold"} <= set(table["columns"]) for table in tables)
    every = [record for _, record in records(wandb_file(folder))]
    artifacts = [r.artifact for r in every if r.WhichOneof("record_type") == "artifact"]  # tables keep pictures there
    kept = [[entry.path for entry in a.manifest.contents if entry.path.endswith(".jpg")] for a in artifacts]
    assert [len(set(paths)) for paths in kept] == [len(table["data"]) for table in tables] and all(kept)
    assert ["hacks/path" in row for row in pictures] == [False, True]
    metrics = {m.glob_name or m.name: m for m in (r.metric for r in every if r.WhichOneof("record_type") == "metric")}
    assert metrics["*"].step_metric == "reward_queries"
    assert metrics["eval/*"].summary.max and metrics["eval/*"].summary.min and metrics["eval/*"].summary.last


def test_the_environment_may_not_ask_for_a_key_either(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="WANDB_MODE=online needs a key"):
        make_wandb_logger(tmp_path, "overopt", "auto", "group", [], {})


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_costs_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}
    for key, value in nowhere.items():
        monkeypatch.setenv(key, value)
    done = run_forked(*TINY, "logger.mode=online", f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "W&B cannot be reached" in done.stdout
    assert len(history_of(folder)) == len(rows_of(folder)) == 6
