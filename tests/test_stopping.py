"""SIGTERM at any moment: a sentence, exit code 143, and a run that goes on as if nothing had been."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object

from src import stopping
from src.runs.resuming import command_to_resume
from tests.conftest import LONGER, ROOT, rows_of
from tests.forked import call_forked, run_forked, started
from tests.test_resume import final_state, same, timeless

WAITS = "SIGTERM: stops after this iteration, or at once in 20 s or if told so again.\n"


def signalled_at(place: str, call: int, signals: tuple[int, ...] = (signal.SIGTERM,), pause: float = 0.0) -> None:
    """From here on the process gets these signals as it enters a function for the call-th time, `pause` s apart."""
    owner, name = place.rsplit(".", 1)
    owner = get_object(owner)
    real, calls = getattr(owner, name), []

    @functools.wraps(real)
    def entered(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            for k, signum in enumerate(signals):
                time.sleep(pause if k else 0)
                os.kill(os.getpid(), signum)
        return real(*args, **kwargs)

    setattr(owner, name, entered)


def stopped(overrides: list[str], told: Path, before: Callable[[], Any]) -> tuple[int, str]:
    """Runs the command; returns its exit code and stderr."""
    told.mkdir()
    process = started(overrides, told, before)
    process.join(300)
    return process.exitcode, (told / "err").read_text()


slow = pytest.mark.slow
FINETUNER, EVALUATION = "src.finetuner.RewardFinetuner", "src.callbacks.evaluation.CrossRewardEvaluation"
MOMENTS = {  # where, at which call, and the iteration that is kept, None where the run has not begun
    "composing": ("src.tasks.session.check", 1, None),
    "loading weights": pytest.param("src.tasks.building.build_rewards", 1, None, marks=slow),
    "first evaluation": pytest.param(f"{EVALUATION}.evaluate", 1, None, marks=slow),
    "sampling": pytest.param(f"{FINETUNER}.sample", 1, 1, marks=slow),
    "scoring": pytest.param(f"{FINETUNER}.score", 4, 4, marks=slow),
    "an optimizer step": (f"{FINETUNER}._optimizer_step", 8, 3),  # the second of three of the third iteration
    "a reset": pytest.param("src.resets.phase.ResetPhase.__call__", 2, 2, marks=slow),
    "evaluation": pytest.param(f"{EVALUATION}.evaluate", 2, 3, marks=slow),
    "the watch keeps weights": pytest.param("src.callbacks.watch.keep_weights", 2, 3, marks=slow),
    "writing a checkpoint": pytest.param("lightning.Trainer.save_checkpoint", 2, 4, marks=slow),
    "the last iteration": pytest.param(f"{FINETUNER}.update", 6, 6, marks=slow),
    "summing up": pytest.param("src.tasks.finetune.summarise", 1, 6, marks=slow),
    "the report": pytest.param("src.tasks.finetune.write_report", 1, 6, marks=slow),
}


@pytest.mark.parametrize(
    ("place", "call", "kept"),
    [value if hasattr(value, "marks") else pytest.param(*value, id=name) for name, value in MOMENTS.items()],
)
def test_stopped_and_resumed_equals_uninterrupted(place, call, kept, finished, tmp_path):
    folder = tmp_path / "stopped"
    command = [*LONGER, f"run_dir={folder}"]
    code, err = stopped(command, tmp_path / "told", functools.partial(signalled_at, place, call))
    assert code == 143 and "Traceback" not in err
    if kept is None:
        assert err == "stopped by SIGTERM; the same command begins anew.\n" and not folder.exists()
    else:
        again = f"stopped by SIGTERM; python -m src.run resume={folder} goes on from the last checkpoint.\n"
        waits = not place.startswith("src.tasks")
        assert err == (WAITS if waits else "") + again
        assert max(row["iteration"] for row in rows_of(folder)) == kept
        command = [f"resume={folder}"]
    if call == 1 and kept is None and not place.startswith(EVALUATION):
        return  # nothing has been drawn yet
    done = run_forked(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert timeless(folder) == timeless(finished) and same(final_state(folder), final_state(finished))


def test_ctrl_c_tells_how_to_resume_this_run(tmp_path):
    """And not the last one under runs/; the command that is told goes on with it."""
    folder = tmp_path / "elsewhere" / "seed=1"
    command = [*LONGER, "iterations=2", "checkpoint_every=1", "evaluation.max_prompts=2", f"run_dir='{folder}'"]
    before = functools.partial(signalled_at, f"{FINETUNER}._optimizer_step", 5, (signal.SIGINT,))
    code, err = stopped(command, tmp_path / "told", before)
    told = f"stopped by SIGINT; python -m src.run \"resume='{folder}'\" goes on from the last checkpoint.\n"
    assert (code, err) == (130, told)
    assert [row["iteration"] for row in rows_of(folder, "iteration")] == [1]
    done = run_forked(*shlex.split(re.search(r"src\.run (.*) goes on", err)[1]))
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["iteration"] for row in rows_of(folder, "iteration")] == [1, 2] and (folder / "summary.json").exists()


@pytest.mark.parametrize("seconds", [0.2, pytest.param(2.0, marks=slow), pytest.param(5.0, marks=slow)])
def test_stopped_while_it_imports(seconds, tmp_path):
    """A real process; before Python has come to our first line the signal ends it, which the shell tells as 143."""
    command = [sys.executable, "-m", "src.run", *LONGER, f"run_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM) and "Traceback" not in err
    assert process.returncode < 0 or "the same command begins anew." in err
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------- the handler, in a bare process


def pretend(before: Callable[[], Any], within: Callable[[], Any]) -> None:
    """A command that listens from the start, and whose training does `within`; prints how it was stopped."""
    stopping.listen()
    before()
    stopping.begun()
    try:
        with stopping.in_iterations():
            within()
        print("ended")
    except KeyboardInterrupt as stop:
        stopping.leave()
        print(f"stopped by {stopping.stopped_by(stop)}")


def told(*signals: int, pause: float = 0.0) -> None:
    for k, signum in enumerate(signals):
        time.sleep(pause if k else 0)
        os.kill(os.getpid(), signum)


def iteration(*signals: int, pause: float = 0.0, seconds: float = 0.0, grace: float = stopping.GRACE) -> None:
    """One that is told to stop, goes on for so many seconds, and is kept."""
    stopping.GRACE = grace
    stopping.iteration_begins()
    told(*signals, pause=pause)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
    print("kept")
    if stopping.asked():
        stopping.stop()


class Swallows:
    """Python goes on where something is raised in here."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def importing() -> None:
    """A module that sends the signal, and is imported to its end all the same."""
    Path("told.py").write_text("import os, time\nos.kill(os.getpid(), 15)\ntime.sleep(0.2)\nprint('imported')\n")
    sys.path.insert(0, "")
    import told  # noqa: F401

    stopping.begun()  # as a sweep's first job says once it has imported what it needs
    time.sleep(5)


def swallowing() -> None:
    stopping.AGAIN = 0.2
    Swallows()
    time.sleep(5)


INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
iterating = functools.partial(functools.partial, iteration)
SIGNALLED = {  # what happens, which signal is said to wait, and what becomes of it
    "nothing": (iterating(), "", "kept\nended\n"),
    "SIGTERM": (iterating(TERM), "SIGTERM", "kept\nstopped by SIGTERM\n"),
    "a scheduler warns": (iterating(signal.SIGUSR1), "SIGUSR1", "kept\nstopped by SIGUSR1\n"),
    "the terminal goes": (iterating(HUP), "SIGHUP", "kept\nstopped by SIGHUP\n"),
    "Ctrl-C waits for nothing": (iterating(INT), "", "stopped by SIGINT\n"),
    "the same twice at once is one": (iterating(TERM, TERM), "SIGTERM", "kept\nstopped by SIGTERM\n"),
    "later it is another": (iterating(TERM, TERM, pause=2.2), "SIGTERM", "stopped by SIGTERM\n"),
    "Ctrl-C after SIGTERM": (iterating(TERM, INT), "SIGTERM", "stopped by SIGINT\n"),
    "an iteration without end": (iterating(TERM, seconds=9, grace=0.1), "SIGTERM", "stopped by SIGTERM\n"),
    "while it imports": (importing, "", "imported\nstopped by SIGTERM\n"),
    "the exception is swallowed": (swallowing, "", "stopped by SIGTERM\n"),
    "out of any iteration": (functools.partial(told, TERM), "", "stopped by SIGTERM\n"),
}


@pytest.mark.parametrize("case", SIGNALLED)
def test_how_signals_are_taken(case, tmp_path):
    within, waits, out = SIGNALLED[case]
    done = call_forked(pretend, functools.partial(os.chdir, tmp_path), within)
    assert (done.returncode, done.stdout) == (0, out), done.stderr
    assert (f"{waits}: stops after this iteration" in done.stderr) == bool(waits)


@pytest.mark.parametrize(("signum", "code"), [(INT, 130), (TERM, 143), (HUP, 129)])
def test_before_anything_has_begun(signum, code):
    done = call_forked(pretend, functools.partial(told, signum), bool)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "stopped before it began; the same command begins anew.\n"


def ignoring() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pretend(bool, functools.partial(told, HUP))


def test_nohup_is_respected():
    assert call_forked(ignoring).stdout == "ended\n"


@pytest.mark.slow
def test_a_rank_that_is_told_stops_all(tmp_path):
    folder = tmp_path / "run"
    devices = ["trainer.devices=2", "trainer.accelerator=cpu", "iterations=50", "evaluation.every=100"]
    command = [sys.executable, "-m", "src.run", *LONGER, *devices, f"run_dir={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "metrics.jsonl").exists() or len(rows_of(folder, "iteration")) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in err, err
    last = max(row["iteration"] for row in rows_of(folder))
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=False)
    assert checkpoint["progress"]["iteration"] == last < 50


@pytest.mark.parametrize(
    "path", ["runs/x", "/a b/c", "multirun/x/a=0.1,seed=0", "it's", "a\\b'", "läufe/x", "a$b", "a!b", '"', "~/x", "x:y"]
)
def test_the_command_that_resumes_can_be_typed(path):
    words = shlex.split(command_to_resume(path))
    assert words[:3] == ["python", "-m", "src.run"] and len(words) == 4
    assert OverridesParser.create().parse_override(words[3]).value() == path
    assert path != "runs/x" or words[3] == "resume=runs/x"
    assert not re.search("[a-z]'", command_to_resume("runs/2026-11-22_10-00-00_tdpo_r_hps_seed0"))


# ------------------------------------------------------------------------------------------------------------ sweeps


def outcomes(root: Path) -> dict[str, str]:
    found = [json.loads(path.read_text()) for path in (root / "jobs").glob("*.json")]
    return {job["swept"][0]: job["state"] for job in found}


def assert_each_iteration_once(root: Path) -> None:
    for file in root.glob("*/metrics.jsonl"):
        last = json.loads((file.parent / "summary.json").read_text())["iterations"]
        assert [row["iteration"] for row in rows_of(file.parent, "iteration")] == list(range(1, last + 1))


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=slow)])
def test_a_stopped_sweep_begins_no_other_job(again, tmp_path, four_prompts):
    """The same command ends what was begun, and begins what was not."""
    root = tmp_path / "sweep"
    command = ["-m", *four_prompts, "threads=1", "checkpoint_every=9", "seed=1,2", f"hydra.sweep.dir={root}"]
    code, err = stopped(command, tmp_path / "told", functools.partial(signalled_at, f"{FINETUNER}.update", 1))
    assert code == 143 and err == WAITS + "stopped by SIGTERM; the same command goes on from the last checkpoint.\n"
    assert outcomes(root) == {"seed=1": "stopped"} and len(list(root.glob("*/checkpoints/last.ckpt"))) == 1
    out = (tmp_path / "told" / "out").read_text()
    assert ": stopped by SIGTERM; the same command goes on with it." in out and "0 of 1 jobs" in out
    assert "report:" not in out and not list(root.glob("jobs/*traceback*"))
    if not again:
        return
    (begun,) = root.glob("*/metrics.jsonl")
    rows = rows_of(begun.parent)
    done = run_forked(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert outcomes(root) == {"seed=1": "resumed", "seed=2": "done"} and "2 of 2 jobs are finished" in done.stdout
    assert rows_of(begun.parent)[: len(rows)] == rows  # to the second: what was done is not done again
    assert_each_iteration_once(root)
    assert "skipped, for it is finished" in run_forked(*command).stdout


@pytest.mark.slow
@pytest.mark.parametrize("signum", [TERM, INT])
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_sweep_whose_jobs_run_elsewhere_is_stopped(launcher, signum, tmp_path, four_prompts):
    """All of them: none is left running. The same command ends what they have begun."""
    root = tmp_path / "sweep"
    options = [*four_prompts, "iterations=30", "evaluation.every=1000", f"hydra/launcher={launcher}"]
    command = [sys.executable, "-m", "src.run", "-m", *options, "seed=1,2", f"hydra.sweep.dir={root}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while sum(len(rows_of(path.parent)) > 4 for path in root.glob("*/metrics.jsonl")) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum and "Traceback" not in err, err
    assert err.endswith(f"stopped by {signum.name}; the same command goes on from the last checkpoint.\n")
    assert outcomes(root) == {"seed=1": "stopped", "seed=2": "stopped"} and "0 of 2 jobs" in out
    rows = {path: path.read_text() for path in root.glob("*/metrics.jsonl")}
    time.sleep(3)
    assert rows == {path: path.read_text() for path in rows}  # nobody writes any more
    kept = {path: torch.load(path.parent / "checkpoints/last.ckpt")["progress"]["iteration"] for path in rows}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "2 of 2 jobs are finished" in again.stdout, again.stderr[-2000:]
    assert outcomes(root) == {"seed=1": "resumed", "seed=2": "resumed"}
    for path, text in rows.items():
        before = [json.loads(line) for line in text.splitlines()]
        done = [row for row in before if row["iteration"] <= kept[path]]
        assert done and rows_of(path.parent)[: len(done)] == done
    assert_each_iteration_once(root)
