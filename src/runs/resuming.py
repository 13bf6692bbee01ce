"""How what was stopped goes on: the command, for whoever has to tell it."""

from dataclasses import dataclass
from pathlib import Path

from src.overrides import written

COMMAND = "python -m src.run"


@dataclass
class _Here:
    """What this process is at."""

    folder: Path | None = None  # of the run, or of the last one
    resumable: bool = True
    sweep: bool = False


_here = _Here()


def now_at(folder: Path, resumable: bool) -> None:
    """A run begins in this folder, or goes on there."""
    _here.folder, _here.resumable = folder, resumable


def now_sweeping(sweep: bool) -> None:
    """Runs are jobs of a sweep, which finds by itself what is left to do."""
    _here.sweep, _here.folder = sweep, None


def command_to_resume(folder: Path | str) -> str:
    """Such as `python -m src.run resume=runs/NAME`, quoted for Hydra and for the shell where the path asks for it."""
    return f"{COMMAND} {written('resume', str(folder))}"


def how_to_go_on() -> str:
    """The end of a sentence that tells of an interruption."""
    if _here.sweep:
        return "the same command goes on from the last checkpoint"
    if _here.folder is None or not _here.folder.is_dir():
        return "the same command begins anew"
    if not _here.resumable:
        return f"the same command begins anew, and {_here.folder} stays unfinished"
    has_checkpoint = (_here.folder / "checkpoints" / "last.ckpt").exists()
    return f"{command_to_resume(_here.folder)} goes on {'from the last checkpoint' if has_checkpoint else 'with it'}"
