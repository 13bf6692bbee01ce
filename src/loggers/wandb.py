"""Weights & Biases through Lightning's logger: offline where there is no key, and never a prompt.

A run is one run there, too, with every row once, whatever kills and resumes lie between: each row of metrics.jsonl is
one row of W&B's, with the pictures that belong to it. What a kill left beyond the checkpoint is cut off W&B's files as
it is off metrics.jsonl; where a server has it already, the resumed run does not send it again.
"""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import wandb
import wandb.env
import wandb.errors
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from wandb.sdk import wandb_setup
from wandb.sdk.lib.wbauth import authenticate_session

from src.errors import UserError, first_line
from src.files import make_folder
from src.loggers.tracker import Tracker
from src.loggers.wandb_files import RowName, Session, sessions
from src.runs.folder import write_text

INIT_TIMEOUT = 20  # s that the beginning waits, where W&B's own variable does not say otherwise
FINISH_TIMEOUT = 120  # s that the end of a run waits for a server; what is left lies in the run folder for `wandb sync`
HURRY = 5.0  # s that it waits where the run was told to stop, and will be killed
FLUSH_INTERVAL = 0.05  # s until a row is in W&B's file
Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
MAX_TAG, MAX_GROUP = 64, 128  # characters that W&B takes
_own_folders: dict[str, str] = {}  # variables that say where W&B writes, as they were set here

Row = dict[str, Any]


class RunLogger(WandbLogger, Tracker):
    """Sends rows that W&B does not hold yet, each together with the pictures that were added before it.

    Args:
        run: W&B's.
        held: the rows that W&B has of earlier sessions.
        command: sends what lies in the run folder, where the run is offline.
    """

    def __init__(self, run: wandb.Run, held: set[RowName], command: str | None):
        super().__init__(experiment=run)
        self.told = f"W&B: logged offline; to send it: {command}" if command else None
        self._held = held
        self._media: dict[str, Any] = {}

    def add_media(self, media: dict[str, Any]) -> None:
        self._media |= media

    @rank_zero_only
    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        media, self._media = self._media, {}
        if _name_of(metrics) not in self._held:
            super().log_metrics(metrics | media, step)


def make_wandb_logger(
    run_dir: Path,
    project: str,
    mode: Literal["auto", "online", "offline", "disabled"],
    group: str,
    tags: list[str],
    config: dict[str, Any],
    resumed_at: int | None = None,
    rows: Sequence[Row] = (),
) -> RunLogger:
    """A logger whose x-axis is `reward_queries`. A resumed run goes on under the same W&B id.

    Args:
        run_dir: the run folder; W&B's own files lie in its wandb/.
        project: W&B's.
        mode: `auto` is what WANDB_MODE says, else online with an API key at hand, else offline.
        group: of runs, the sweep's or the experiment's name.
        tags: what else W&B finds the run by.
        config: of the run, as W&B shows it.
        resumed_at: the iteration that a run goes on from.
        rows: of metrics.jsonl up to there; W&B is told of those that it has not got.

    Raises UserError on what W&B does not take, and if `online` is asked for, here or there, without a key: nobody is at
    the keyboard to type one.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    if "WANDB_SERVICE" in os.environ and wandb.run is None:
        del os.environ["WANDB_SERVICE"]  # of another process, which may have ended
    mode = _mode(mode)
    if mode == "disabled":
        return RunLogger(wandb.init(mode=mode), set(), None)
    _keep_files_in(run_dir)
    removed = (run_dir / "wandb_id.txt").exists() and not sessions(run_dir)  # by the user: it has been sent
    earlier = _mend(sessions(run_dir), resumed_at)
    if mode == "online" and not _send(run_dir, earlier):
        print("W&B has not taken what earlier sessions of the run logged offline; this one stays offline, too.")
        mode = "offline"
    options: dict[str, Any] = {
        "name": run_dir.name[:MAX_GROUP],
        "dir": run_dir,
        "project": project,
        "group": group[:MAX_GROUP],
        "tags": [tag[:MAX_TAG] for tag in tags],
        "config": config,
        "id": _id_of(run_dir, earlier),
        "resume": "allow",
    }
    run = _begin(mode, options)
    held = _held(earlier, sessions(run_dir)[-1], online=not run.offline)
    logger = RunLogger(run, held, _sync_command(run_dir, earlier) if run.offline else None)
    _set_axis(run)
    for row in rows if not removed else ():
        logger.log_metrics(row, step=row["iteration"])
    return logger


def finish(exit_code: int, in_a_hurry: bool) -> None:
    """Ends the run of this process, if there is one. What is not sent in a hurry lies in the run folder."""
    if not in_a_hurry:
        wandb.finish(exit_code=exit_code)
        return

    def end() -> None:
        with suppress(Exception):  # W&B's end when the process leaves it behind
            wandb.finish(exit_code=exit_code)

    waited_for = threading.Thread(target=end, daemon=True)
    waited_for.start()
    waited_for.join(HURRY)


def _mode(asked: str) -> Mode:
    name = f"logger.mode={asked}"
    if asked == "auto":
        if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
            return "disabled"
        asked = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        name = f"WANDB_MODE={asked}"
    if asked not in MODES:
        raise UserError(f"{name} is no mode of W&B: choose online, offline or disabled.")
    if MODES[asked] == "online" and not has_key():
        raise UserError(f"{name} needs a key: set WANDB_API_KEY or run `wandb login`, or have it offline.")
    return MODES[asked]


def has_key() -> bool:
    """Whether W&B finds a key for its server, in the environment or where `wandb login` leaves one."""
    with _told():
        host = os.environ.get("WANDB_BASE_URL") or wandb_setup.singleton().settings.base_url
        return authenticate_session(host=host, source="overopt", prompt=False, update_session=False) is not None


def _keep_files_in(run_dir: Path) -> None:
    """Pictures of tables wait for their upload in the run folder; so does the rest where the home is read-only."""
    folders = {"WANDB_DATA_DIR": run_dir / "wandb"}
    try:
        make_folder(cache := wandb.env.get_cache_dir())
        tempfile.TemporaryFile(dir=cache).close()  # a folder may be there, and nothing be let in
    except (UserError, OSError):
        folders["WANDB_CACHE_DIR"] = run_dir / "wandb" / "cache"
    for key, folder in folders.items():
        if os.environ.get(key) == _own_folders.get(key):  # the user's own choice stays
            os.environ[key] = _own_folders[key] = str(folder.absolute())


def _mend(earlier: list[Session], resumed_at: int | None) -> list[Session]:
    """Cuts what is not to be sent; returns the sessions that hold anything."""
    left = []
    for session in earlier:
        if session.cut(None if session.sent else resumed_at):
            left.append(session)
        else:
            shutil.rmtree(session.file.parent)
    return left


def _send(run_dir: Path, earlier: list[Session]) -> bool:
    """Uploads what earlier sessions have logged offline, before an online one adds to it; whether that went well."""
    waiting = [session for session in earlier if not session.sent]
    if waiting:
        command = [sys.executable, "-m", "wandb", "sync", *(str(session.file.parent) for session in waiting)]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                env=os.environ | {"WANDB_DIR": str(run_dir)},  # where it writes down what it does
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=FINISH_TIMEOUT,
            )
    return all(session.sent for session in waiting)


def _id_of(run_dir: Path, earlier: list[Session]) -> str:
    """The run's, chosen once."""
    file = run_dir / "wandb_id.txt"
    stored = file.read_text("utf-8").strip() if file.exists() else ""
    if not stored:
        stored = earlier[-1].file.stem.removeprefix("run-") if earlier else secrets.token_hex(4)
        write_text(file, stored)
    return stored


def _begin(mode: Mode, options: dict[str, Any]) -> wandb.Run:
    with _told():
        wait = float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT))
        options["settings"] = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=wait,
            finish_timeout=FINISH_TIMEOUT,
            x_transaction_log_flush_interval=FLUSH_INTERVAL,
        )
        try:
            return wandb.init(mode=mode, **options)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
            print(f"W&B cannot be reached ({first_line(error)}); logging offline, `wandb sync` uploads it later.")
            wandb.teardown()  # the failed attempt still holds the id
            return wandb.init(mode="offline", **options)


def _held(earlier: list[Session], now: Session, online: bool) -> set[RowName]:
    """What W&B has of earlier sessions: in its files, or on its server."""
    if not online:
        return {name for session in earlier for name in session.rows().values()}
    steps: dict[int, RowName] = {}
    for session in earlier:
        first = session.starting_step if session.offline else 0
        steps |= {first + step: name for step, name in session.rows().items()}
    return {name for step, name in steps.items() if step < now.starting_step}


def _sync_command(run_dir: Path, earlier: list[Session]) -> str:
    """What uploads the run; of an online session that was killed the server may lack the end."""
    options = "" if all(session.offline or session.ended for session in earlier) else "--include-online "
    return f"wandb sync {options}{shlex.quote(f'{run_dir}/wandb')}"


def _name_of(row: Row) -> RowName:
    return str(row["kind"]), int(row["iteration"])


@contextmanager
def _told() -> Iterator[None]:
    """What W&B says of a setting that it does not take, in one sentence."""
    try:
        yield
    except wandb.errors.CommError as error:
        raise UserError(f"W&B's key cannot be used: {first_line(error)}; mend it, or have it offline.") from error
    except (wandb.errors.UsageError, ValueError) as error:
        said = first_line(error)
        if hasattr(error, "errors"):  # pydantic's
            said = "; ".join(f"{(*fault['loc'], 'settings')[0]}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"W&B does not take its settings ({said}): look at logger.project and at WANDB_*.") from error


def _set_axis(run: wandb.Run) -> None:
    run.define_metric("reward_queries")
    run.define_metric("*", step_metric="reward_queries")
    for measured in ("eval/*", "held_out/*"):  # a run's table shows where each curve ended, and its extremes
        run.define_metric(measured, step_metric="reward_queries", summary="min,max,last")
