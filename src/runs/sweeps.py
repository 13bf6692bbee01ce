"""Sweeps: every job has a folder of its own name, so that the same command skips, resumes, or runs what is missing.

    multirun/tdpo_r_hps_reset_ratio/
      reset.ratio=0.1,seed=0/ ...     run folders as of single runs
      jobs/reset.ratio=0.1,seed=0.*   how each job went last: .json; .traceback.txt of a bug
      report.html                     of all of them

Jobs may run in other processes or on other machines, so what becomes of a sweep is judged by what lies on disk.
"""

import contextlib
import fcntl
import gc
import hashlib
import importlib.util
import os
import re
import secrets
import shlex
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.table import Table

from src.config import Task, check, default_of, default_values, needed_keys
from src.errors import UserError, sentence_of
from src.files import make_folder, read_object, user_path, write_json, write_text
from src.report.runs import IGNORED, describes, find_runs, flat
from src.runs.folder import LOCK, read_config
from src.runs.launched import is_one_process
from src.runs.resuming import now_sweeping
from src.screen import show
from src.stopping import begun, leave, stopped_by

NEEDS = {  # of a launcher or sweeper: a module, and the extra that installs it
    "joblib": ("joblib", "sweeps"),
    "submitit_local": ("submitit", "sweeps"),
    "submitit_slurm": ("submitit", "sweeps"),
    "optuna": ("optuna", "sweeps"),
    "ray": ("ray", "ray"),
}
GOES_ON = "; the same command goes on with it."
AGAIN = "remove it, and the same command writes it anew"
MAX_NAME = 150  # bytes in a folder's name
STARTED = {LOCK, "versions.json"}  # what a kill leaves before there is a configuration, beside half-written files
# our presets have the names of the plugins' own options, and Hydra would rather that they had not
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.*validated against ConfigStore")
_begun: dict[str, Any] = {}  # the sweep of this process, if it started one: its folder, jobs, and token


class Sweep(Callback):
    """Hydra's hook into a multirun; tells all its jobs, wherever they run, what they have in common.

    Args:
        token: of one call of the command; what a job writes down of itself tells which call it was of.
        swept: the keys that differ between the jobs.
    """

    def __init__(self, token: str, swept: list[str]):
        self.token, self.swept = token, swept

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_installed(config.hydra.runtime.choices)
        now_sweeping(True)
        begun()
        folder, token = _made(config.hydra.sweep.dir), secrets.token_hex(4)
        _begun.update(folder=folder, jobs=[], token=token)
        quoted = folder.replace("'", r"\'")
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = folder  # jobs are composed anew, from these and from their own overrides
            config.hydra.overrides.hydra += [
                f"hydra.sweep.dir='{quoted}'",
                f"hydra.callbacks.sweep.token='{token}'",
                f"hydra.callbacks.sweep.swept={swept_keys(config)}",
            ]


def _made(folder: str) -> str:
    """The sweep's folder, made, as a person names it."""
    try:
        return str(make_folder(user_path(folder) / "jobs", "hydra.sweep.dir=").parent)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)  # Hydra makes a warning of any other exception in a callback


def _check_installed(choices: Any) -> None:
    for group in ("hydra/launcher", "hydra/sweeper"):
        module, extra = NEEDS.get(choices.get(group), (None, ""))
        if module and importlib.util.find_spec(module) is None:
            needed = f'{group}={choices[group]} needs packages that are not installed: pip install -e ".[{extra}]"'
            print(f"error: {needed}", file=sys.stderr)
            sys.exit(2)  # Hydra makes a warning of any other exception in a callback


def swept_keys(config: DictConfig) -> list[str]:
    """The keys that the command line or the sweeper's `params` give several values."""
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    params = sweeper.get("params") or {}
    given = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in params.items())]
    parsed = OverridesParser.create().parse_overrides(given)
    return sorted({override.key_or_group for override in parsed if override.is_sweep_override()})


def expect(config: DictConfig, jobs: Iterable[Sequence[str]]) -> None:
    """The sweep's end will tell of these jobs, launched in other processes, whether they ever begin there or not.

    Args:
        config: the multirun's.
        jobs: the overrides of each.
    """
    swept = swept_keys(config)
    _begun["jobs"] += [job_name(list(overrides), swept) for overrides in jobs]


def in_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def group_and_tags() -> tuple[str, list[str]]:
    """What W&B finds a job by: the sweep's name, and the job's values of what is swept."""
    return Path(HydraConfig.get().sweep.dir).name, swept_values()


def swept_values() -> list[str]:
    """The job's overrides that are not the same in all jobs."""
    hydra = HydraConfig.get()
    return sorted(_plain(o) for o in hydra.overrides.task if _key(o) in hydra.callbacks["sweep"].swept)


def job_name(overrides: list[str], swept: list[str]) -> str:
    """The job's overrides as the name of a folder, less those that make no other run of it.

    Different overrides have different names, whatever characters they hold.
    """
    silent = {*IGNORED, "sweeps", *({"experiment"} - set(swept))}  # the last two name the sweep's folder
    named = sorted(_plain(o) for o in overrides if _key(o).split(".")[0] not in silent)
    name = ",".join(named) or "default"
    safe = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)
    if safe == name and len(name) <= MAX_NAME:
        return name
    return f"{safe[:MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _plain(override: str) -> str:
    return override.lstrip("+")


def _key(override: str) -> str:
    return _plain(override).split("=")[0]


def run_job(composed: DictConfig, run: Callable[[DictConfig], Any]) -> float:
    """One job: skipped, resumed, or run. Returns its objective, or nan; raises nothing, so that the others go on.

    But for what stops the sweep: an interruption of the process that started it.
    """
    now_sweeping(True)
    begun()
    hydra = HydraConfig.get()
    root, overrides = Path(hydra.sweep.dir), list(hydra.overrides.task)
    name = job_name(overrides, list(hydra.callbacks["sweep"].swept))
    folder, status = root / name, root / "jobs" / f"{name}.json"
    told: dict[str, Any] = {"job": name, "token": hydra.callbacks["sweep"].token, "swept": swept_values()}
    status.parent.mkdir(parents=True, exist_ok=True)
    try:
        _refuse_several_processes(composed)
        with _alone(root / "jobs" / f"{name}.lock"):
            write_json(status, told | {"state": "running"})
            told["state"] = _settle(composed, folder, run)
            value = _objective(folder, composed.objective)
            write_json(status, told)
    except KeyboardInterrupt as stop:
        leave()
        told |= {"state": "stopped", "sentence": f"stopped by {stopped_by(stop)}{GOES_ON}"}
        write_json(status, told)
        if _begun:
            raise  # the sweep that this process started is to stop
        value = float("nan")  # the one who waits for this job has been told to stop, too, or goes on with the others
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and "SUBMITIT_FOLDER" in os.environ:
            raise  # submitit has queued the job again, which will resume
        told |= {"state": "failed", **_told_of(error, status.with_suffix(".traceback.txt"))}
        print(f"job {name} failed: {told['sentence']}", file=sys.stderr, flush=True)
        value = float("nan")
        write_json(status, told)
    _free_memory()
    return value


def _refuse_several_processes(composed: DictConfig) -> None:
    """Raises UserError where a job's ranks would each take it for theirs."""
    if not is_one_process(composed.trainer):
        raise UserError(
            f"trainer.devices={composed.trainer.get('devices', 1)}: a job of a sweep is one process; start runs on "
            "several devices one by one, without -m and +sweeps."
        )


def _free_memory() -> None:
    """Of a job that has ended, for the next one in this process."""
    gc.collect()  # trainer and module refer to each other
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()  # does nothing where there is none


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits for whoever runs the same job: another call of the command, or a search that proposed it twice.

    The lock dies with its process.
    """
    with lock.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that runs {lock.stem}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system that has no locks
        yield


def _settle(composed: DictConfig, folder: Path, run: Callable[[DictConfig], Any]) -> str:
    """Does what is left to do of a job; returns what that was: skipped, resumed or done."""
    for key in ("run_dir", "resume"):
        if composed[key]:
            raise UserError(f"{key}= is for single runs: a sweep resumes by itself, under hydra.sweep.dir.")
    if composed.threads is None:
        composed.threads = threads_of_a_job(HydraConfig.get().launcher)
    cfg = check(_as_stored(composed))
    if not (folder / "config.yaml").exists():
        if folder.is_dir() and {path.name for path in folder.iterdir() if path.suffix != ".tmp"} <= STARTED:
            shutil.rmtree(folder)
        composed.run_dir = str(folder)
        run(composed)
        return "done"
    _refuse_another(folder, cfg)
    if (folder / "summary.json").exists():
        read_object(folder / "summary.json", AGAIN)
        print(f"skipped, for it is finished: {folder}", flush=True)
        return "skipped"
    if cfg["task"] != "train_reward":
        composed.resume = str(folder)
    else:  # takes minutes and leaves nothing to go on from
        shutil.rmtree(folder)
        composed.run_dir = str(folder)
    run(composed)
    return "resumed"


def _as_stored(composed: DictConfig) -> DictConfig:
    """What a run of this will have in its folder: an evaluation of weights of ours is configured as their run was."""
    if composed.task != Task.evaluate:
        return composed
    from src.tasks.evaluate import asked  # torch; not needed to skip jobs of other tasks

    return asked(composed)


def threads_of_a_job(launcher: Any) -> int | None:
    """CPU threads with which the jobs that run at once do not fight for cores; None leaves it to torch."""
    if at_once := launcher.get("n_jobs"):  # joblib; -1 is all cores, -2 all but one
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // (at_once if at_once > 0 else max(1, cores + 1 + at_once)))
    cores = launcher.get("cpus_per_task") or launcher.get("remote", {}).get("num_cpus")
    return max(1, int(cores)) if cores else None  # Ray counts in fractions, too


def _refuse_another(folder: Path, cfg: dict[str, Any]) -> None:
    """Raises UserError if the folder holds a run of another configuration."""
    stored = read_config(folder, needed_keys())
    wanted: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(cfg))))
    there, here = (flat({k: v for k, v in c.items() if k not in IGNORED}) for c in (default_values() | stored, wanted))
    for key in sorted(there | here):
        younger = key not in there  # than the run: fine where it is as it was before there was one, or only described
        if younger and (here[key] == default_of(wanted, key) or describes(key)):
            continue
        if there.get(key) != here.get(key):
            raise UserError(
                f"{folder} holds a run of another configuration ({key} was {there.get(key)}, is {here.get(key)} now): "
                "move it away, or name another hydra.sweep.dir."
            )


def _objective(folder: Path, key: str | None) -> float:
    if key is None:
        return float("nan")
    final = read_object(folder / "summary.json", AGAIN).get("final", {})
    if key not in final:
        raise UserError(
            f"objective={key} is not among the final figures in {folder / 'summary.json'}: choose one of them."
        )
    return float(final[key])


def _told_of(error: BaseException, path: Path) -> dict[str, Any]:
    """The sentence of an error, and its exit code; of a bug its last line, and the whole of it in a file."""
    path.unlink(missing_ok=True)
    if told := sentence_of(error):
        return dict(zip(("sentence", "exit_code"), told, strict=True))
    write_text(path, "".join(traceback.format_exception(error)))
    return {"sentence": f"{traceback.format_exception_only(error)[-1].strip()} ({path})"}


@contextmanager
def summed_up() -> Iterator[None]:
    """Ends a sweep that was started inside with a table and its report, and with exit code 1 if a job failed."""
    _begun.clear()
    now_sweeping(False)
    failed, stopped = False, False
    try:
        yield
    except KeyboardInterrupt:
        leave()
        stopped = True
        raise
    finally:
        if _begun:
            failed = _sum_up(Path(_begun["folder"]), _begun["token"], _begun["jobs"], stopped)
    if failed:
        sys.exit(1)


def _sum_up(root: Path, token: str, expected: list[str], stopped: bool) -> bool:
    """Prints how the jobs of this call went; returns whether any failed.

    Args:
        root: folder of the sweep.
        token: of this call; what earlier ones have left has another.
        expected: names of jobs beside those that have told something.
        stopped: the sweep was; then there is no time for a report.
    """
    found = [_read(path) for path in (root / "jobs").glob("*.json")]
    told = {job["job"]: job for job in found if job.get("token") == token}
    jobs = [told.get(name) or _untold(root, name) for name in sorted({*told, *expected})]
    if not jobs:
        return False
    gains = {job["job"]: _gains(root / job["job"]) for job in jobs}
    rewards = list(dict.fromkeys(name for row in gains.values() for name in row))
    table = Table(title=f"the jobs of this command in {root}: gain at the end [base sd]")
    for column in ("job", "outcome", *rewards):
        table.add_column(column, justify="left" if column in ("job", "outcome") else "right", overflow="fold")
    for job in jobs:
        row = gains[job["job"]]
        label = ", ".join(job["swept"]) or job["job"]
        table.add_row(label, job["state"], *(f"{row[name]:+.2f}" if name in row else "-" for name in rewards))
    show(table, width=160)
    failed = [job for job in jobs if job["state"] not in ("done", "skipped", "resumed")]
    for job in failed:
        kind = "stopped" if stopped or job["state"] == "stopped" else "failed"
        print(f"{kind}: {job['job']}: {job.get('sentence', f'it never ended{GOES_ON}')}")
    print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs are finished; the same command runs what is missing.")
    if stopped:
        return bool(failed)
    with contextlib.suppress(UserError):  # where no run has been evaluated yet
        from src.report.page import write_report  # plotly; not needed by the jobs of other processes

        runs = find_runs([str(root)])
        print(f"report: {write_report(runs, root / 'report.html')}")
        if len(runs) > 1:
            print(
                f"all {len(runs)} runs of the folder, arm by arm: python -m src.report.compare {shlex.quote(str(root))}"
            )
    return bool(failed)


def _untold(root: Path, name: str) -> dict[str, Any]:
    """A job that told this call nothing: another call of the command is at it, or its process died too early."""
    state = "done" if (root / name / "summary.json").exists() else "failed"
    return {"job": name, "swept": [], "state": state, "sentence": f"it never began{GOES_ON}"}


def _read(path: Path) -> dict[str, Any]:
    """What a file tells; nothing where it is not there, or broken: the other jobs are told all the same."""
    with contextlib.suppress(UserError, OSError):
        return read_object(path)
    return {}


def _gains(folder: Path) -> dict[str, float]:
    final = _read(folder / "summary.json").get("final", {})
    return {key.split("/")[1]: final[key] for key in final if re.fullmatch("eval/[^/]+/gain", key)}
