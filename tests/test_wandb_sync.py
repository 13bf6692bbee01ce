"""A run that is killed and resumed is one run at W&B, with every row once: offline and then `wandb sync`, or online.

Against a server of our own on this machine, which keeps what the real client sends it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

import src.loggers.wandb as tracker
from src.loggers.jsonl import JsonlLogger
from src.loggers.wandb_files import records, sessions, values_of
from tests.conftest import LONGER, ROOT, rows_of
from tests.forked import call_forked, run_forked
from tests.test_resume import kill_at
from tests.wandb_server import HISTORY, KEY, StoredRun, WandbServer, wandb_server

RUN = [
    *(override for override in LONGER if not override.startswith("logger")),
    "iterations=3",
    "checkpoint_every=1",
    "evaluation.every=2",
]


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    for key in [key for key in os.environ if key.startswith("WANDB")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def server(monkeypatch):
    with wandb_server() as listening:
        yield listening
        assert not listening.unknown


def told(out: str) -> str:
    """The command that a run tells at its end."""
    return re.search(r"^W&B: logged offline; to send it: (.*)$", out, re.M)[1]


def sync(command: str, server: WandbServer, where: Path) -> list[StoredRun]:
    """Types the command; returns the runs that the server then has."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    here = {"env": os.environ | server.environment() | {"PATH": path}, "cwd": where}
    done = subprocess.run(command, shell=True, **here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr
    return list(server.runs.values())


def plain(rows: list[dict]) -> list[dict]:
    """Without what W&B adds, its pictures among it."""
    ours = lambda k, v: k[0] != "_" and k != "trainer/global_step" and not isinstance(v, dict)  # noqa: E731
    return [{k: v for k, v in row.items() if ours(k, v)} for row in rows]


def assert_every_row_once(run: StoredRun, folder: Path) -> None:
    assert plain(run.history) == rows_of(folder)
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))


@pytest.mark.slow
def test_killed_resumed_and_synced(tmp_path, server):
    """Between the evaluation after iteration 2 and the watch's look at it, with a checkpoint of iteration 1."""
    folder = tmp_path / "run"
    kill_at(folder, "row 5", [*RUN, f"run_dir={folder}"])
    done = run_forked(f"resume={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    command = told(done.stdout)
    assert command == f"wandb sync {folder}/wandb"
    (run,) = sync(command, server, tmp_path)
    assert_every_row_once(run, folder)
    assert run.exit_codes[-1] == 0 and run.last("displayName") == "run"
    pictures = [row["samples"]["path"] for row in run.history if row["kind"] == "evaluation"]
    assert len(pictures) == 3 and set(pictures) <= set(run.uploaded)
    tables = [artifact for artifact in server.artifacts if artifact["name"].endswith("pictures_and_scores")]
    assert len(tables) == 3 and all(table["committed"] and len(table["files"]) > 2 for table in tables)
    before = len(run.history)
    (again,) = sync(command, server, tmp_path)
    assert len(again.history) == before  # once more sends nothing


# ------------------------------------------------------- sessions of a run that logs by itself, which takes no seconds


def log(folder: Path, mode: str, resumed_at: int, last: int, kill: bool) -> None:
    """Rows of iterations after `resumed_at`, each with a picture, then the end, or a kill before the last is stored."""
    metrics = JsonlLogger(folder / "metrics.jsonl")
    rows = metrics.forget_after(resumed_at)
    options: dict[str, Any] = {"group": "g", "tags": [], "config": {}, "resumed_at": resumed_at, "rows": rows}
    wandb_logger = tracker.make_wandb_logger(folder, "p", mode, **options)
    print(wandb_logger.told, flush=True)
    for iteration in range(resumed_at + 1, last + 1):
        row = {"kind": "iteration", "iteration": iteration, "reward_queries": 4 * iteration}
        wandb_logger.add_media({"samples": wandb.Image(np.zeros((8, 8, 3), np.uint8))})
        for logger in (metrics, wandb_logger):
            logger.log_metrics(row, step=iteration)
        if not kill or iteration < last:
            time.sleep(0.2)  # several times what W&B's file may lag behind
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    wandb.finish()


def session(folder: Path, mode: str, resumed_at: int, last: int, kill: bool = False) -> str:
    """Returns what is printed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = call_forked(log, folder, mode, resumed_at, last, kill)
    assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_two_kills_and_an_end(tmp_path, server):
    """Checkpoints are of iterations 2 and 5; the rows of 3 and 4, and of 6, are logged twice.

    What the first session has left is sent before it is known where the second goes on.
    """
    folder = tmp_path / "run"
    out = session(folder, "offline", 0, 4, kill=True)
    (first,) = sync(told(out), server, tmp_path)
    assert [row["iteration"] for row in first.history] in ([1, 2, 3], [1, 2, 3, 4])
    session(folder, "offline", 2, 6, kill=True)
    (run,) = sync(told(session(folder, "offline", 5, 8)), server, tmp_path)
    assert_every_row_once(run, folder)
    assert [row["iteration"] for row in run.history] == list(range(1, 9)) and len(server.runs) == 1
    assert run.summary["iteration"] == 8 and run.exit_codes[-1] == 0


def test_offline_then_online(tmp_path, server, monkeypatch):
    """What was logged offline is sent first; and an online session is killed, too."""
    for key, value in server.environment().items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "run"
    session(folder, "offline", 0, 4, kill=True)
    session(folder, "online", 2, 6, kill=True)
    session(folder, "online", 5, 8)
    (run,) = server.runs.values()
    assert_every_row_once(run, folder)
    assert [row["iteration"] for row in run.history] == list(range(1, 9))


def test_what_was_logged_without_wandb_is_sent_too(tmp_path, server):
    """And what was removed once it had been sent is not sent again."""
    folder = tmp_path / "run"
    session(folder, "disabled", 0, 3)
    assert not (folder / "wandb").exists()
    (run,) = sync(told(session(folder, "offline", 3, 5)), server, tmp_path)
    assert_every_row_once(run, folder)
    shutil.rmtree(folder / "wandb")
    session(folder, "offline", 5, 6)
    (left,) = sessions(folder)
    assert list(left.rows().values()) == [("iteration", 6)]


def test_an_unreachable_server_leaves_a_session_unsent(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    session(folder, "offline", 0, 1)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracker, "FINISH_TIMEOUT", 2)
    assert not tracker._send(folder, sessions(folder)) and tracker._send(folder, [])


def test_what_a_kill_may_leave_of_the_file(tmp_path):
    """Part of a record; what a file system makes of a part that never reached the disk; a bare header; nothing."""
    folder = tmp_path / "run"
    session(folder, "offline", 0, 3)
    (whole,) = sessions(folder)
    data, ends = whole.file.read_bytes(), [end for end, record in records(whole.file) if values_of(record)]
    flipped = bytearray(data[: ends[-1]])
    flipped[-9] ^= 1
    for damaged in (data[: ends[-1] - 5], data[: ends[-1] - 40] + bytes(40), bytes(flipped)):
        whole.file.write_bytes(damaged)
        assert whole.cut(None) and list(whole.rows().values()) == [("iteration", 1), ("iteration", 2)]
        assert ends[-2] <= whole.file.stat().st_size < ends[-1]
    whole.file.write_bytes(data)
    assert whole.cut(1) and list(whole.rows().values()) == [("iteration", 1)]
    for nothing in (b"", data[:7], data[:100]):
        whole.file.write_bytes(nothing)
        assert not whole.cut(None)
    session(folder, "offline", 3, 4)
    assert not whole.file.exists()  # `wandb sync` would refuse it, and all others with it
    (only,) = sessions(folder)
    assert list(only.rows().values()) == [("iteration", k) for k in range(1, 5)]


def test_an_id_that_was_lost_is_found_again(tmp_path):
    folder = tmp_path / "run"
    session(folder, "offline", 0, 1, kill=True)
    stored = (folder / "wandb_id.txt").read_text()
    (folder / "wandb_id.txt").write_text("\n")
    session(folder, "offline", 0, 1)
    assert (folder / "wandb_id.txt").read_text() == stored
    killed, ended = sessions(folder)
    assert killed.file.name == ended.file.name == f"run-{stored}.wandb" and ended.ended and not killed.ended
    assert tracker._sync_command(Path("a b"), [killed, ended]) == "wandb sync 'a b/wandb'"


@pytest.mark.slow
def test_several_runs_are_sent_at_once(tmp_path, server):
    """By the guide's command, one of them killed and resumed in between."""
    page = (ROOT / "docs/guides/wandb.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^(wandb sync [^#\n]*?) *#", page, re.M)
    assert command == "wandb sync runs/*/wandb"
    folders = [tmp_path / "runs" / name for name in ("a b", "one")]
    session(folders[0], "offline", 0, 3, kill=True)
    session(folders[0], "offline", 2, 4)
    session(folders[1], "offline", 0, 2)
    sync(command, server, tmp_path)
    for folder in folders:
        assert_every_row_once(server.runs["p", (folder / "wandb_id.txt").read_text()], folder)
    assert len(server.runs) == 2


@pytest.mark.slow
def test_what_a_killed_online_session_has_not_sent_is_sent_with_the_rest(tmp_path, server, monkeypatch):
    """The server has heard of its beginning, and is told the rows that it lacks, each once."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        for key, value in server.environment().items():
            patch.setenv(key, value)
        session(folder, "online", 0, 4, kill=True)
    (run,) = server.runs.values()
    missed = run.streamed.get(HISTORY, {})
    missed.pop(max(missed, default=0), None)  # the last that came is lost
    command = told(session(folder, "offline", 2, 6))
    assert command == f"wandb sync --include-online {folder}/wandb"
    (run,) = sync(command, server, tmp_path)
    assert_every_row_once(run, folder)
    assert [row["iteration"] for row in run.history] == list(range(1, 7))


def ended_in_a_hurry(folder: Path) -> None:
    logger = tracker.make_wandb_logger(folder, "p", "online", "g", [], {})
    logger.log_metrics({"kind": "iteration", "iteration": 1})
    tracker.HURRY = 1.0
    (folder / "silent").touch()
    time.sleep(0.5)
    start = time.monotonic()
    tracker.finish(143, in_a_hurry=True)
    print(f"{time.monotonic() - start:.0f}")


def test_a_server_that_answers_no_more_does_not_keep_a_run_that_is_told_to_stop(tmp_path, server, monkeypatch):
    for key, value in server.environment().items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "run"
    folder.mkdir()
    threading.Thread(target=fall_silent, args=(server, folder / "silent", released := threading.Event())).start()
    start = time.monotonic()
    done = call_forked(ended_in_a_hurry, folder)
    released.set()
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert time.monotonic() - start < 30
    assert list(sessions(folder)[0].rows().values()) == [("iteration", 1)]


def log_as_nobody(folder: Path) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)
    tracker.make_wandb_logger(folder, "p", "offline", "g", [], {}).log_metrics({"kind": "iteration", "iteration": 1})
    wandb.finish()


def test_a_cache_that_takes_no_files(open_place, monkeypatch):
    """A home that is read-only, with the folder in it: W&B would fill the screen with errors of its own."""
    home, folder = open_place / "home", open_place / "run"
    (home / ".cache" / "wandb").mkdir(parents=True)
    folder.mkdir()
    folder.chmod(0o777)
    for place in (home, home / ".cache", home / ".cache" / "wandb"):
        place.chmod(0o555)
    monkeypatch.setenv("HOME", str(home))
    done = call_forked(log_as_nobody, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "wandb" / "cache").is_dir() and not list((home / ".cache" / "wandb").iterdir())
    assert list(sessions(folder)[0].rows().values()) == [("iteration", 1)]


def fall_silent(server: WandbServer, when: Path, until: threading.Event) -> None:
    while not when.exists():
        time.sleep(0.05)
    with server.lock:
        until.wait(60)
