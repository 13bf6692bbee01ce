"""Shared fixtures: the real shipped models, and runs of seconds through the real entry point."""

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.cached_hydra import compose_faster
from tests.forked import ROOT, run_forked

BASE = str(ROOT / "src/mini/weights/base")
TINY = ["+experiment=tdpo_r_hps", "+debug=tiny", "logger.mode=disabled", "threads=1"]
LONGER = [
    *TINY,
    "iterations=6",
    "checkpoint_every=2",
    "evaluation.every=3",
    "evaluation.max_prompts=4",
    "reset.every=2",
]

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers and the runs they start share the cores
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
compose_faster()
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, or behind a &; what is started would inherit it
        signal.signal(number, handler)


LONG = (
    *("ranks", "sweeps", "resume", "evaluate", "benchmark", "methods", "configs", "finetuner", "history", "run"),
    *("controls", "best_of_n", "reward_training", "wandb", "report_browser"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker is left with one of them at the end."""
    files = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: files.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what has been imported stays: every later collection, one a job of a sweep, would go through it


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of this process, which those it starts would share


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every user can go into; pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def composed(*overrides: str) -> DictConfig:
    """The configuration that the command line with these overrides gives."""
    import src.config  # noqa: F401  (registers the schema)

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def run_command(*overrides: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "src.run", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)


def rows_of(folder: Path, kind: str | None = None) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if kind in (None, row["kind"])]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """An uninterrupted run of six iterations, with resets and evaluations on the way; of all workers, to be read."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "summary.json").exists():
            done = run_forked(*LONGER, f"run_dir={folder}")
            assert done.returncode == 0, done.stderr[-2000:]
            assert "trajectory-steps trained per second" in done.stdout
    return folder


@pytest.fixture(scope="session")
def four_prompts(tmp_path_factory) -> list[str]:
    """Overrides for the smallest real run."""
    path = tmp_path_factory.mktemp("prompts") / "four.txt"
    path.write_text("cat\ndog\nhorse\nmonkey\n")
    return [*(o for o in TINY if not o.startswith("threads")), "prompts=file", f"prompts.path={path}"]
