"""Files and folders: named by people, written whole or not at all, text always in UTF-8; every fault one sentence."""

import difflib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.errors import UserError

WIDE = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # by a file's first bytes


def near(given: str) -> str:
    """What lies where a path or pattern that leads nowhere points, as the end of a clause; empty where nothing does."""
    path = user_path(given)
    folder = next(parent for parent in path.parents if parent.is_dir())
    wanted = re.sub(r"[*?\[\]]", "", path.relative_to(folder).parts[0])
    names = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    found = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    return f" ({folder} holds {', '.join(found)})" if found else ""


def user_path(named: str | Path) -> Path:
    """A path as a person gives it: ~ is the home folder. Relative ones are relative to where the command runs."""
    return Path(os.path.expanduser(named))  # noqa: PTH111  (leaves a ~name alone that is nobody's; pathlib raises)


def expanded(node: Any) -> Any:
    """A configuration whose every text that begins with ~ has the home folder there, whichever option it is of."""
    if isinstance(node, dict):
        return {key: expanded(value) for key, value in node.items()}
    if isinstance(node, list):
        return [expanded(value) for value in node]
    return str(user_path(node)) if isinstance(node, str) and node.startswith("~") else node


def make_folder(folder: Path, option: str = "") -> Path:
    """Makes a folder and what is missing above it; one that is there is as good.

    Raises UserError where it cannot be made; `option` is what the message calls it, such as `run_dir=`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}{folder} cannot be made: {reason(folder, error)}.") from error
    return folder


def reason(path: Path, error: OSError) -> str:
    """Why the system refuses a path; of a link to nowhere it says no more than that the file exists."""
    with suppress(OSError):  # where even looking is forbidden
        for part in (path, *path.parents):
            if part.is_symlink() and not part.exists():
                return f"{part} is a link to {part.readlink()}, which is not there (a disk that is not mounted?)"
            if part.is_file():
                return f"{part} is a file"
    return error.strerror or str(error)


# ------------------------------------------------------------------------------------------------------------ reading


def read_text(path: Path, option: str = "") -> str:
    """A UTF-8 file, without its byte-order mark. Raises UserError, with the line, where it is in another encoding."""
    content = path.read_bytes()
    mend = "save it as UTF-8"
    if wide := WIDE.get(content[:2]):
        raise UserError(f"{option}{path} is in {wide}: {mend} (iconv -f {wide} -t UTF-8).")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise UserError(
            f"{option}{path}, line {line}: the byte 0x{byte:02x} is not UTF-8: {mend} (iconv -f LATIN1 -t UTF-8, if it "
            "is in Latin-1)."
        ) from error


def read_json(path: Path, mend: str = "fetch or write it anew") -> Any:
    """What a JSON file holds. Raises UserError, with how to `mend` it, where that is none."""
    try:
        return json.loads(path.read_bytes())  # in UTF-8, UTF-16 or UTF-32, told apart as the standard says
    except ValueError as error:
        raise UserError(f"{path} is no readable JSON ({error}): {mend}.") from error


def read_object(path: Path, mend: str = "fetch or write it anew") -> dict[str, Any]:
    """The object that a JSON file holds. Raises UserError, with how to `mend` it, where it holds another thing."""
    content = read_json(path, mend)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: {mend}.")
    return content


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl; one cut short by a kill, and what a crash of the machine left, are skipped."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


# ------------------------------------------------------------------------------------------------------------ writing


def remove(path: Path) -> None:
    """A file, a link, but not what it leads to, or a folder with all that is in it; nothing is as good."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The whole file or nothing, as `write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """A whole file or the one before. Bytes of a path that this locale could not read are written as they were."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """The whole file or nothing. Raises OSError that names the file."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # two processes may write the same file
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        error.filename = str(path)  # which the person knows
        raise
