"""What a run folder says of where its numbers come from."""

import json

from src import run_folder
from src.report.runs import Run


def test_a_run_that_another_commit_resumed_names_both(tmp_path, monkeypatch):
    for commit in ("a" * 40, "b" * 40 + "+changes", "b" * 40 + "+changes"):
        monkeypatch.setattr(run_folder, "_commit", lambda commit=commit: commit)
        run_folder.write_config(tmp_path, {"seed": 0})
    assert Run(tmp_path, {}, [], []).commit == "aaaaaaaaa bbbbbbbbb+changes"
    found = json.loads((tmp_path / "versions.json").read_text())
    assert found["earlier_commits"] == ["a" * 40, "b" * 40 + "+changes"] and found["cpu"]


def test_a_commit_that_is_not_known_is_none(tmp_path):
    assert Run(tmp_path, {}, [], []).commit == ""
