"""Finished runs kept as small files, and made run folders again."""

import json
import shutil

import pytest

from src.errors import UserError
from src.report.kept import FILES, keep, restore
from src.report.runs import find_runs
from src.report.study import study_runs


def a_folder(runs, name, finished=True):
    folder = runs / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.ckpt").write_text("large")
    (folder / "config.yaml").write_text("train_reward: hps\niterations: 1\nsuite: {rewards: {hps: {}}}\n")
    (folder / "versions.json").write_text(json.dumps({"commit": "abc"}))
    rows = [{"kind": "evaluation", "iteration": 0, "reward_queries": 0}]
    if finished:
        (folder / "summary.json").write_text("{}")
        rows += [{"kind": "iteration", "iteration": 1}, {"kind": "evaluation", "iteration": 1, "reward_queries": 8}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_finished_run_comes_back_to_the_byte_without_its_weights(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    first = a_folder(runs, "reset.ratio=0.1,seed=0")
    a_folder(runs, "reset.ratio=0.1,seed=1", finished=False)
    assert [path.name for path in keep(runs, kept)] == ["reset.ratio=0.1,seed=0.tar.xz"]
    there = {name: (first / name).read_bytes() for name in FILES}
    assert restore(kept, runs) == []  # it is there
    shutil.rmtree(runs)
    (folder,) = restore(kept, runs)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == there
    assert [run.folder for run in find_runs([str(runs)])] == [folder]


def test_what_is_kept_is_not_touched_and_the_same_run_makes_the_same_file(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    a_folder(runs, "seed=0")
    (file,) = keep(runs, kept)
    before = file.read_bytes()
    (runs / "seed=0/metrics.jsonl").write_text("")
    assert keep(runs, kept) == [] and file.read_bytes() == before
    file.unlink()
    shutil.rmtree(runs)
    a_folder(runs, "seed=0")
    assert keep(runs, kept) == [file] and file.read_bytes() == before
    assert sorted(path.name for path in kept.iterdir()) == [file.name]


def test_a_run_that_had_to_stop_is_kept_with_its_reason_and_not_one_that_can_go_on(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    (runs / "jobs").mkdir(parents=True)
    for name, told in {
        "nan": {"state": "failed", "exit_code": 1, "sentence": "a reward is not finite"},
        "killed": {"state": "running"},
        "misspelt": {"state": "failed", "exit_code": 2, "sentence": "no such reward"},
        "bug": {"state": "failed", "sentence": "KeyError"},
    }.items():
        a_folder(runs, name, finished=False)
        (runs / f"jobs/{name}.json").write_text(json.dumps({"job": name} | told))
    assert [path.name for path in keep(runs, kept)] == ["nan.tar.xz"]
    shutil.rmtree(runs)
    (folder,) = restore(kept, runs)
    assert json.loads((folder / "stopped.json").read_text()) == {"sentence": "a reward is not finite"}
    (run,) = find_runs([str(runs)])
    assert run.had_to_stop and not run.finished
    assert restore(kept, runs) == []  # it is there


def test_checkpoints_of_what_is_kept_can_be_removed(tmp_path):
    done, going = a_folder(tmp_path / "runs", "done"), a_folder(tmp_path / "runs", "going", finished=False)
    (done / "unet").mkdir()
    keep(tmp_path / "runs", tmp_path / "kept", light=True)
    assert not (done / "checkpoints").exists() and (done / "unet").exists() and (going / "checkpoints").exists()


def test_what_is_no_kept_run_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "kept").mkdir()
    a_folder(tmp_path / "elsewhere", "seed=0")
    (whole,) = keep(tmp_path / "elsewhere", tmp_path / "whole")
    for content in (b"nonsense", whole.read_bytes()[:200], whole.read_bytes()[:-100] + bytes(100)):
        (tmp_path / "kept/seed=0.tar.xz").write_bytes(content)
        with pytest.raises(UserError, match=r"seed=0.tar.xz is no kept run"):
            restore(tmp_path / "kept", tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(UserError, match="no such folder of runs"):
        keep(tmp_path / "nowhere", tmp_path / "kept")


def test_a_study_is_read_from_its_kept_runs(tmp_path, monkeypatch):
    study = tmp_path / "experiments/some_study"
    with pytest.raises(UserError, match=r"experiments/some_study/run.sh makes them"):
        study_runs(study)
    a_folder(tmp_path / "elsewhere", "seed=0")
    keep(tmp_path / "elsewhere", study / "runs")
    (run,) = study_runs(study)
    assert run.folder == tmp_path / "multirun/some_study/seed=0"
    monkeypatch.chdir(tmp_path)
    assert len(study_runs(study, ["elsewhere"])) == 1


def test_a_run_that_is_kept_finished_and_lies_here_unfinished_is_told(tmp_path):
    a_folder(tmp_path / "elsewhere", "seed=0")
    keep(tmp_path / "elsewhere", tmp_path / "kept")
    a_folder(tmp_path / "runs", "seed=0", finished=False)
    with pytest.raises(UserError, match=r"seed=0 is unfinished, and finished in .*seed=0.tar.xz"):
        restore(tmp_path / "kept", tmp_path / "runs")
