"""The run folder: whose it is, and what it says of where its numbers come from."""

import json
import shutil

import pytest

from src.errors import UserError
from src.report.runs import Run
from src.runs import folder as run_folder
from src.tasks.session import session

NEW = {"run_dir": None, "name": "tdpo", "seed": 0, "task": "finetune"}


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "RUNS", tmp_path / "runs")
    chosen = [run_folder._unused(tmp_path / "runs" / "now") for _ in range(3)]
    assert [folder.name for folder in chosen] == ["now", "now-2", "now-3"] and all(map(run_folder.Path.is_dir, chosen))
    assert run_folder.new_run_dir(NEW).is_dir()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "run"
    with session(folder):
        with pytest.raises(UserError, match="another process is running there"), session(folder):
            raise AssertionError("two at once")
        assert folder.is_dir()
    assert run_folder.new_run_dir(NEW | {"run_dir": str(folder)}) == folder  # a lock alone is no run
    (folder / "config.yaml").touch()
    with pytest.raises(UserError, match=f"exists; name another, or go on with it by resume={folder}"):
        run_folder.new_run_dir(NEW | {"run_dir": str(folder)})
    with pytest.raises(UserError, match=r"exists; name another\.$"):
        run_folder.new_run_dir(NEW | {"run_dir": str(folder), "task": "train_reward"})


@pytest.mark.parametrize("begun", [None, "metrics.jsonl", "pool"])
def test_a_run_that_never_began_leaves_nothing(tmp_path, monkeypatch, begun):
    """Whatever it failed of; and W&B hears that it did."""
    codes, folder = [], tmp_path / "run"
    monkeypatch.setattr("wandb.finish", lambda exit_code: codes.append(exit_code))
    with pytest.raises(ZeroDivisionError), session(folder):
        (folder / "config.yaml").touch()
        if begun:
            (folder / begun).touch()
        raise ZeroDivisionError
    assert folder.exists() == bool(begun) and codes == [1]
    shutil.rmtree(folder, ignore_errors=True)
    with session(folder):
        pass
    assert codes == [1, 0]


def test_a_run_that_another_commit_resumed_names_both(tmp_path, monkeypatch):
    for commit in ("a" * 40, "b" * 40 + "+changes", "b" * 40 + "+changes"):
        monkeypatch.setattr(run_folder, "_commit", lambda commit=commit: commit)
        run_folder.write_config(tmp_path, {"seed": 0})
    assert Run(tmp_path, {}, [], []).commit == "aaaaaaaaa bbbbbbbbb+changes"
    found = json.loads((tmp_path / "versions.json").read_text())
    assert found["earlier_commits"] == ["a" * 40, "b" * 40 + "+changes"] and found["cpu"]


def test_a_commit_that_is_not_known_is_none(tmp_path):
    assert Run(tmp_path, {}, [], []).commit == ""
