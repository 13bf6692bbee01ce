"""Finished runs as small files that a repository can keep, one a run: what any analysis reads, without the weights.

`python -m src.report.kept keep multirun/STUDY experiments/STUDY/runs` packs every finished run of a folder that is not
kept yet, and those of a sweep that had to stop, such as at a NaN; `restore` with the same two makes run folders of
them, so that reports and analyses read them, and a sweep skips the finished ones, wherever they were made.
"""

import argparse
import io
import lzma
import tarfile
import tempfile
from pathlib import Path

from src.errors import UserError, told_in_one_sentence
from src.files import make_folder, read_object, remove, user_path, write_bytes, write_json
from src.report.runs import STOPPED
from src.screen import survive_its_end

FILES = ("config.yaml", "versions.json", "summary.json", "metrics.jsonl")  # of a finished run
FILES_OF_STOPPED = tuple(STOPPED if name == "summary.json" else name for name in FILES)
ENDING = ".tar.xz"


def keep(runs: Path, kept: Path, light: bool = False) -> list[Path]:
    """Packs every finished run directly below `runs`, and those that had to stop; returns the new files.

    What is kept already is not touched. `light` removes the checkpoints of what is kept; weights stay. Raises UserError
    where there is no such folder.
    """
    if not runs.is_dir():
        raise UserError(f"{runs}: no such folder of runs; name one, such as multirun/STUDY.")
    make_folder(kept)
    _tell_stopped(runs)
    new = []
    for end in sorted([*runs.glob("*/summary.json"), *runs.glob(f"*/{STOPPED}")]):
        target = kept / f"{end.parent.name}{ENDING}"
        if not target.exists():
            _pack(end.parent, FILES if end.name == "summary.json" else FILES_OF_STOPPED, target)
            new.append(target)
        if light:
            remove(end.parent / "checkpoints")
    return new


def _tell_stopped(runs: Path) -> None:
    """Writes into the folder of a run that had to stop why it had to, as its sweep was told."""
    for file in sorted(runs.glob("jobs/*.json")):
        job = read_object(file)
        folder = runs / job["job"]
        evaluated = (folder / "metrics.jsonl").exists() and not (folder / "summary.json").exists()
        if evaluated and job["state"] == "failed" and job.get("exit_code") == 1:
            write_json(folder / STOPPED, {"sentence": job["sentence"]})


def restore(kept: Path, runs: Path) -> list[Path]:
    """Makes a run folder below `runs` of every kept run that has none there; returns the new folders.

    Raises UserError on a file that is no kept run, and where a run lies unfinished that is kept finished.
    """
    new = []
    for file in sorted(kept.glob(f"*{ENDING}")):
        folder = runs / file.name.removesuffix(ENDING)
        if not folder.exists():
            _unpack(file, folder)
            new.append(folder)
        elif not any((folder / name).exists() for name in ("summary.json", STOPPED)):
            raise UserError(f"{folder} is unfinished, and finished in {file}: remove the former.")
    return new


def _pack(folder: Path, files: tuple[str, ...], target: Path) -> None:
    """The same run makes the same file, and a file is there whole or not at all."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as archive:
        for name in files:
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write_bytes(target, packed.getvalue())


def _unpack(file: Path, folder: Path) -> None:
    make_folder(folder.parent)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".restoring-") as place:
            whole = Path(place) / "run"
            whole.mkdir()
            with tarfile.open(file) as archive:
                for name in FILES_OF_STOPPED if STOPPED in archive.getnames() else FILES:
                    archive.extract(name, whole, filter="data")
            whole.rename(folder)
    except (tarfile.TarError, lzma.LZMAError, KeyError, EOFError) as error:
        raise UserError(f"{file} is no kept run ({error}); fetch it anew, or remove it and run the study.") from error


def main() -> None:
    """Keeps runs as small files, or makes run folders of those again."""
    survive_its_end()
    parser = argparse.ArgumentParser(prog="python -m src.report.kept", description=__doc__)
    parser.add_argument("what", choices=("keep", "restore"))
    parser.add_argument("runs", type=user_path, help="folder of run folders, such as multirun/STUDY")
    parser.add_argument("kept", type=user_path, help="folder of kept runs, such as experiments/STUDY/runs")
    parser.add_argument("--light", action="store_true", help="removes checkpoints of runs that are kept; weights stay")
    args = parser.parse_args()
    with told_in_one_sentence():
        new = keep(args.runs, args.kept, args.light) if args.what == "keep" else restore(args.kept, args.runs)
    print(f"{args.what}: {len(new)} new, {len(list(args.kept.glob(f'*{ENDING}')))} kept in {args.kept}")


if __name__ == "__main__":
    main()
