"""Sweeps: what is skipped, resumed and run; what a broken job costs the others (nothing); and every launcher."""

import errno
import fcntl
import json
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from submitit.core.utils import UncompletedJobError

import src.run
from hydra_plugins.overopt import joblib_launcher, submitit_launcher
from hydra_plugins.overopt.jobs import died
from src.config import default_of
from src.errors import TrainingError
from src.runs import sweeps
from src.runs.folder import write_config, write_json
from src.runs.sweeps import job_name, threads_of_a_job
from tests.conftest import TINY, rows_of, run_command
from tests.forked import run_forked
from tests.test_resume import final_state, kill_at, same, timeless

Sweeper = Callable[..., tuple[int, str]]


@pytest.fixture
def sweep(tmp_path, capfd, monkeypatch) -> Iterator[Sweeper]:
    """Runs a sweep under tmp_path/sweep in this process; returns its exit code and what it printed."""

    def call(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["src.run", "-m", *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}"])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        try:
            src.run.cli()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code)
        told = capfd.readouterr()
        return code, told.out + told.err

    yield call
    HydraConfig.instance().cfg = None


@pytest.fixture
def pretended(monkeypatch) -> list[SimpleNamespace]:
    """In place of runs: whatever is asked for is written down here, and its reward is best at a ratio of 0.3."""
    calls: list[SimpleNamespace] = []

    def run(cfg) -> dict:
        config, folder = sweeps.check(cfg), Path(cfg.resume or cfg.run_dir)
        calls.append(SimpleNamespace(config=config, folder=folder, group_and_tags=sweeps.group_and_tags()))
        ratio = config["reset"]["ratio"]
        if ratio == 0.9:
            raise ZeroDivisionError("nine tenths")
        if ratio == 0.8:
            raise TrainingError("a reward is not finite")
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, config)
        write_json(folder / "summary.json", {"final": {"eval/gold/gain": 1 - (ratio - 0.3) ** 2}})
        return {}

    monkeypatch.setattr(src.run, "run", run)
    return calls


def states(root: Path) -> dict[str, str]:
    found = [json.loads(path.read_text()) for path in (root / "jobs").glob("*.json")]
    return {",".join(job["swept"]): job["state"] for job in found}


@pytest.mark.slow
def test_killed_broken_and_repeated(tmp_path, four_prompts, sweep):
    """The sweep is killed in its second job; the same command goes on with it, and once more finds nothing to do.

    Without held-out prompts a watch of the trained reward is off: its margin makes no difference, unless impossible.
    """
    root, key = tmp_path / "sweep", "callbacks.watch.margin"
    longer = [
        *four_prompts,
        "threads=1",
        "callbacks.watch.signal=trained",
        "iterations=4",
        "checkpoint_every=2",
        "evaluation.every=2",
        "reset.every=2",
    ]
    killed, whole = (root / job_name([*longer, f"{key}={margin}"], []) for margin in (0.1, 0.2))
    command = ["-m", *longer, f"{key}=-0.1,0.1,0.2", f"hydra.sweep.dir={root}"]
    kill_at(killed, "row 5", command)  # two evaluations and three iterations; the checkpoint is of the second
    assert (killed / "checkpoints/last.ckpt").exists() and not (killed / "summary.json").exists()
    assert states(root) == {f"{key}=-0.1": "failed", f"{key}=0.1": "running"}

    done = run_forked(*command, "logger.project=another")
    assert done.returncode == 1, done.stderr[-2000:]
    assert states(root) == {f"{key}=-0.1": "failed", f"{key}=0.1": "resumed", f"{key}=0.2": "done"}
    assert re.search(r"margin=0.1 +│ resumed +│ +[+-]\d", done.stdout)  # with its gain
    assert re.search(r"margin=-0.1 +│ failed +│ +- ", done.stdout)
    assert re.search(f"failed: .*{key}=-0.1.*: .*margin=-0.1", done.stdout)
    assert "Traceback" not in done.stderr and f"report: {root / 'report.html'}" in done.stdout
    assert OmegaConf.load(killed / "config.yaml").logger.project == "another"  # how it is run, the command says
    page = (root / "report.html").read_text()
    assert "margin=0.1" in page and "margin=0.2" in page
    assert timeless(killed) == timeless(whole) and len(timeless(whole)) == 7
    assert same(final_state(killed), final_state(whole))

    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*") if path.parent.name != "jobs"}
    code, told = sweep(*longer, f"{key}=0.1,0.2")
    assert code == 0 and "2 of 2 jobs are finished" in told
    assert states(root) == {f"{key}=-0.1": "failed", f"{key}=0.1": "skipped", f"{key}=0.2": "skipped"}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_bug_leaves_its_traceback_and_stops_no_other_job(tmp_path, sweep, pretended):
    code, told = sweep(*TINY, "reset.ratio=0.9,0.5", "seed=7")
    assert code == 1 and len(pretended) == 2
    assert "ZeroDivisionError: nine tenths" in told and "1 of 2 jobs are finished" in told
    (path,) = (tmp_path / "sweep/jobs").glob("*.traceback.txt")
    assert "Traceback" in path.read_text() and path.name.startswith("debug=tiny,reset.ratio=0.9,seed=7")
    sweep(*TINY, "reset.ratio=0.9,0.5", "seed=7", "threads=2")  # how it is run makes no other run of it
    assert len(pretended) == 3 and pretended[-1].config["reset"]["ratio"] == 0.9


def test_another_configuration_is_not_taken_for_finished(tmp_path, sweep, pretended):
    assert sweep(*TINY, "seed=1,2")[0] == 0
    skipped, stored = (tmp_path / f"sweep/debug=tiny,seed={seed}/config.yaml" for seed in (1, 2))
    stored.write_text(stored.read_text().replace("every: 10", "every: 11"))
    assert "  score_input: false\n" in skipped.read_text()  # an option that is younger than a run
    skipped.write_text(skipped.read_text().replace("  score_input: false\n", ""))
    code, told = sweep(*TINY, "seed=1,2")
    assert code == 1 and len(pretended) == 2
    assert "debug=tiny,seed=2 holds a run of another configuration (reset.every was 11, is 10 now)" in told
    assert states(tmp_path / "sweep") == {"seed=1": "skipped", "seed=2": "failed"}
    config = OmegaConf.to_container(OmegaConf.load(skipped))
    assert default_of(config, "critic.score_input") is False
    assert default_of(config, "critic.stride") == 1 and config["critic"]["stride"] == 2  # were it missing: another run


@pytest.mark.parametrize(("experiment", "resumes"), [("best_of_n_hps", True), ("train_reward_hps", False)])
def test_what_an_unfinished_job_goes_on_from(tmp_path, sweep, pretended, experiment, resumes):
    """A control has its pool, a reward's training nothing; of a run killed while it began there is less than that."""
    jobs = [f"+experiment={experiment}", *TINY[1:], "seed=1,2"]
    sweep(*jobs)
    folders = [tmp_path / f"sweep/debug=tiny,seed={seed}" for seed in (1, 2)]
    (folders[0] / "summary.json").unlink()
    (folders[0] / "pool").mkdir()
    for name in ("summary.json", "config.yaml"):
        (folders[1] / name).unlink()
    (folders[1] / ".lock").touch()
    assert sweep(*jobs)[0] == 0
    assert states(tmp_path / "sweep") == {"seed=1": "resumed", "seed=2": "done"}
    assert [call.config["resume"] for call in pretended] == [None, None, str(folders[0]) if resumes else None, None]
    assert (folders[0] / "pool").exists() == resumes


def test_a_job_that_submitit_queues_again_has_not_failed(tmp_path, sweep, monkeypatch):
    """On a timeout submitit's signal handler ends the process by an exit, and the scheduler starts it again."""
    monkeypatch.setattr(src.run, "run", lambda cfg: sys.exit(-1))
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    sweep(*TINY, "seed=1")
    assert list(states(tmp_path / "sweep").values()) == ["running"]


def test_a_job_whose_process_dies_is_told_as_nan(capsys):
    def killed():
        raise UncompletedJobError("out of memory\nmore")

    found = [joblib_launcher.apart(set(), os._exit, 9), submitit_launcher._result(SimpleNamespace(result=killed))]
    assert all(math.isnan(job.return_value) for job in found)
    assert "a job's process ended: out of memory\n" in capsys.readouterr().out


def test_a_job_that_never_begins_has_failed(tmp_path, sweep, pretended, monkeypatch):
    """Its process dies before it has done anything, as of a cancelled job of Slurm; whatever it did the last time."""
    sweep(*TINY, "seed=1,3")
    shutil.rmtree(tmp_path / "sweep/debug=tiny,seed=3")
    monkeypatch.setattr(joblib_launcher, "apart", lambda *_: died(MemoryError()))
    code, told = sweep(*TINY, "seed=1,2,3", "hydra/launcher=joblib")
    assert code == 1 and "1 of 3 jobs are finished" in told
    for seed in (2, 3):
        assert f"failed: debug=tiny,seed={seed}: it never began; the same command goes on with it." in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 would run nothing"),
        (["hydra/launcher=submitit_local", "+hydra.launcher.memgb=3"], "local does not take the jobs: "),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_trials=20 and n_jobs=0 must be"),
        (["hydra/launcher=submitit_slurm"], 'slurm does not take the jobs: Could not detect "srun"'),
        (
            ["hydra/sweeper=optuna", "hydra.sweeper.direction=up"],
            "hydra.sweeper.direction=up must be maximize or minimize",
        ),
        (
            ["hydra/sweeper=optuna", "objective=eval/gold/gain", "reset.ratio=interval(1.0,0.1)"],
            "reset.ratio=interval(1.0,0.1): ",
        ),
    ],
)
def test_bad_input_of_a_launcher_or_a_search(options, message, sweep, pretended, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)  # or a login node would submit the jobs
    code, told = sweep(*TINY, *options)
    assert code == 2 and not pretended and told.startswith(f"error: {message}")
    assert "Traceback" not in told and "never began" not in told


def test_a_file_system_without_locks_runs_jobs_all_the_same(tmp_path, sweep, pretended, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(sweeps.fcntl, "flock", flock)
    assert sweep(*TINY, "seed=1")[0] == 0 and len(pretended) == 1


def test_a_job_that_another_process_runs_is_waited_for(tmp_path, capsys):
    held = (tmp_path / "seed=1.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(0.5, held.close).start()
    with sweeps._alone(tmp_path / "seed=1.lock"):
        assert held.closed and "waiting for another process that runs seed=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run_dir=somewhere", "run_dir= is for single runs"),
        ("resume=last", "resume= is for single runs"),
        ("trainer.devices=2", "trainer.devices=2: a job of a sweep is one process"),
        ("objective=eval/nothing/gain", "objective=eval/nothing/gain is no figure"),
    ],
)
def test_bad_input_of_a_job(override, message, sweep, pretended):
    code, told = sweep(*TINY, "seed=1,2", override)
    assert code == 1 and not pretended
    assert told.count("failed: debug=tiny") == 2 and message in told and "Traceback" not in told


def test_a_sweep_that_cannot_be_composed_runs_nothing(sweep, pretended):
    code, told = sweep(*TINY, "reset=active,nothing")
    assert code == 2 and not pretended and "nothing" in told


@pytest.mark.parametrize("choice", ["hydra/launcher=joblib", "hydra/launcher=ray", "hydra/sweeper=optuna"])
def test_a_missing_package_is_named(choice, sweep, pretended, monkeypatch):
    monkeypatch.setattr(sweeps.importlib.util, "find_spec", lambda name: None)
    code, told = sweep(*TINY, "seed=1,2", choice)
    assert code == 2 and not pretended
    extra = "ray" if choice.endswith("ray") else "sweeps"
    assert told == f'error: {choice} needs packages that are not installed: pip install -e ".[{extra}]"\n'


def test_wandb_finds_the_jobs_of_a_sweep_together(sweep, pretended):
    sweep(*TINY, "reset.ratio=0.5", "seed=1,2", "reset=active,random")
    expected = [[f"reset={reset}", f"seed={seed}"] for seed in (1, 2) for reset in ("active", "random")]
    assert [call.group_and_tags for call in pretended] == [("sweep", tags) for tags in expected]


def test_names_of_jobs():
    given = [
        "+experiment=tdpo_r_hps",
        "+sweeps=reset_ratio",
        "seed=0",
        "+reset.x=0.1",
        "threads=2",
        "logger.mode=disabled",
    ]
    assert job_name(given, ["seed"]) == job_name(given[::-1], []) == "reset.x=0.1,seed=0"
    assert job_name(given[:1], ["experiment"]) == "experiment=tdpo_r_hps"
    assert job_name([], []) == "default"
    odd = [job_name([f"prompts.path={path}"], []) for path in ("a/b", "a b", "a_b", "a" * 300, "a" * 301)]
    assert len(set(odd)) == 5 and all(re.fullmatch(r"[\w.,=+-]{1,170}", name) for name in odd)


def test_threads_do_not_fight_for_cores():
    cores = len(os.sched_getaffinity(0))
    assert threads_of_a_job({"n_jobs": -1}) == 1
    assert threads_of_a_job({"n_jobs": 1}) == cores
    assert threads_of_a_job({"n_jobs": 10 * cores}) == 1
    assert threads_of_a_job({"cpus_per_task": 8}) == 8
    assert threads_of_a_job({"remote": {"num_cpus": 3}}) == 3
    assert threads_of_a_job({"remote": {"num_cpus": 0.5}}) == 1
    assert threads_of_a_job({"remote": {"num_cpus": 0}}) is None
    assert threads_of_a_job({"max_batch_size": None}) is None


def test_optuna_finds_the_best_ratio_and_repeats_itself(tmp_path, sweep, pretended):
    options = [*TINY, "reset.ratio=interval(0.0,0.8)", "objective=eval/gold/gain", "hydra/sweeper=optuna"]
    code, told = sweep(*options, "hydra.sweeper.n_trials=3")
    assert code == 0 and len(pretended) == 3
    ratios = [call.config["reset"]["ratio"] for call in pretended]
    best = min(ratios, key=lambda ratio: abs(ratio - 0.3))
    assert f"best of 3 trials: reset.ratio={best:.6g}" in told
    assert f"'{best:.6g}'" in (tmp_path / "sweep/best.yaml").read_text()
    assert sweep(*options, "hydra.sweeper.n_trials=4")[0] == 0
    assert len(pretended) == 4 and pretended[-1].config["reset"]["ratio"] not in ratios


def test_a_search_is_not_after_the_luckiest_seed(sweep, pretended):
    code, told = sweep(*TINY, "seed=1,2", "objective=eval/gold/gain", "hydra/sweeper=optuna")
    assert code == 2 and not pretended and "seed= is swept" in told


def test_a_search_needs_something_to_search_for(sweep, pretended):
    code, told = sweep(*TINY, "reset.ratio=0.1,0.2", "hydra/sweeper=optuna")
    assert code == 2 and not pretended and "a search needs objective=" in told


def test_a_failed_job_tells_its_exit_code_unless_it_is_a_bug(tmp_path, sweep, pretended):
    code, _ = sweep(*TINY, "reset.ratio=0.9,0.8", "seed=7")
    jobs = [json.loads(path.read_text()) for path in (tmp_path / "sweep/jobs").glob("*.json")]
    assert code == 1 and {job["swept"][0]: job.get("exit_code") for job in jobs} == {
        "reset.ratio=0.9": None,
        "reset.ratio=0.8": 1,
    }


@pytest.mark.slow
def test_a_sweep_over_weights_of_ours_has_a_folder_for_each_and_finds_it_again(tmp_path, finished, sweep):
    """Killed before it had summed up, it goes on; and then there is nothing left to do."""
    command = [
        "+experiment=evaluate",
        f"weights='{finished}'",
        "scale=[0.5]",
        "logger=none",
        "evaluation.max_prompts=2",
    ]
    code, told = sweep(*command, "threads=1")
    (summary,) = (tmp_path / "sweep").glob("*/summary.json")
    assert code == 0 and "done" in told
    summary.unlink()
    assert "resumed" in sweep(*command, "threads=1")[1] and summary.exists()
    assert "skipped" in sweep(*command, "threads=1")[1]
    assert [row["policy/scale"] for row in rows_of(summary.parent, "evaluation")] == [0, 0.5]


@pytest.mark.parametrize("launcher", ["submitit_local", pytest.param("ray", marks=pytest.mark.slow)])
def test_launchers(launcher, tmp_path, four_prompts):
    """A real run in another process, beside one that breaks there; joblib's is in the next test."""
    root = tmp_path / "sweep"
    options = [*four_prompts, "+sweeps=reset_ratio", "reset.ratio=1.5,0.5", "seed=0", f"hydra/launcher={launcher}"]
    done = run_command(*options, f"hydra.sweep.dir={root}", env=os.environ | {"HOME": str(tmp_path)})
    assert done.returncode == 1, done.stderr[-2000:]
    assert states(root) == {"reset.ratio=1.5,seed=0": "failed", "reset.ratio=0.5,seed=0": "done"}
    assert re.search("failed: .*: reset.ratio=1.5 lies outside", done.stdout) and (root / "report.html").exists()
    assert "UserWarning" not in done.stderr
    (folder,) = (path.parent for path in root.glob("*/summary.json"))
    assert re.search("^threads: 1$", (folder / "config.yaml").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_optuna_over_real_runs_by_joblib(tmp_path, four_prompts):
    """Two trials at a time, of which the second asks for a ratio above one."""
    options = [*four_prompts, "+sweeps=best_ratio", "objective=eval/gold/gain", "reset.ratio=interval(0.4,1.3)"]
    plugins = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    done = run_command(*options, *plugins, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1, done.stderr[-2000:]
    assert sorted(states(tmp_path).values()) == ["done", "failed"] and "lies outside" in done.stdout
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json"))
    assert f"value: {summary['final']['eval/gold/gain']}" in (tmp_path / "best.yaml").read_text()
    assert "UserWarning" not in done.stderr and (tmp_path / "report.html").exists()
