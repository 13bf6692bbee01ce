"""Pictures of any origin: found in a folder or a table, matched with their prompts, and opened as RGB."""

import csv
import io
import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8, UInt16
from PIL import Image, ImageOps
from torch import Tensor

from src.errors import UserError, first_line
from src.files import read_text

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of a folder of pictures, as `datasets` has them
PATHS = ("file_name", "path", "file", "filename", "image", "image_path", "picture")  # columns, the first found counts
PROMPTS = ("prompt", "text", "caption")
FRAMES = ("GIF", "WEBP", "PNG", "TIFF")  # formats that may hold several pictures
AHEAD, READERS = 16, 4  # pictures opened before they are wanted; threads that do it

Row = dict[str, Any]
Pixels = UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Picture:
    """One picture to be scored."""

    name: str  # below its folder, or as its table has it
    source: Path | bytes
    prompt: str | None = None


class BadPicture(Exception):
    """A picture that cannot be scored; the message says why, `name` which, `reason` why alone."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


# ------------------------------------------------------------------------------------------------ where they come from


def find_pictures(path: Path) -> list[Picture]:
    """The pictures of a folder, in natural order of their names (2.png before 10.png), or of a table, in its order.

    Raises UserError where there is none.
    """
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in PICTURES and _shown(file, path)]
        if not files:
            raise UserError(f"{path} holds no picture ({', '.join(PICTURES)}); name another folder.")
        names = sorted((str(file.relative_to(path)) for file in files), key=natural)
        return [Picture(name, path / name) for name in names]
    if path.suffix.lower() in TABLES and path.is_file():
        return _from_table(path)
    raise UserError(f"{path}: give a folder of pictures, or a table of paths ({', '.join(TABLES)}).")


def metadata_of(folder: Path) -> Path | None:
    """The table of prompts that lies in a folder of pictures, if one does."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _shown(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers by value."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts]


def _from_table(path: Path) -> list[Picture]:
    rows = read_table(path)
    if not rows:
        raise UserError(f"{path} holds no picture; write a row for each.")
    column, prompts = _column(rows, PATHS, path), _column(rows, PROMPTS, path, needed=False)
    pictures = []
    for k, row in enumerate(rows):
        value, prompt = row.get(column), (row.get(prompts) or "") if prompts else None
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # as `datasets` stores pictures
            pictures.append(Picture(str(value.get("path") or f"row {k + 1}"), value["bytes"], prompt))
        elif isinstance(value, str) and value.strip():
            below = path.parent / value
            pictures.append(Picture(value, below if below.exists() else Path(value), prompt))
        else:
            raise UserError(
                f"{path}: row {k + 1} names no picture in its column {column}: fill it, or take the row out."
            )
    return pictures


def _column(rows: Sequence[Row], names: Sequence[str], path: Path, needed: bool = True) -> str:
    known = {str(key).lower(): str(key) for key in rows[0]}
    found = next((known[name] for name in names if name in known), "")
    if needed and not found:
        raise UserError(f"{path} has none of the columns {', '.join(names)}; it has {', '.join(known.values())}.")
    return found


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV, TSV, JSON, JSONL or parquet file. Raises UserError on one that cannot be read."""
    kind = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        text = read_text(path)
        if kind in (".csv", ".tsv"):
            return list(csv.DictReader(io.StringIO(text), delimiter="," if kind == ".csv" else "\t"))
        if kind == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            content = json.loads(text)
            pairs = content.items() if isinstance(content, dict) else ()
            rows = [{"file_name": name, "prompt": prompt} for name, prompt in pairs] or list(content)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is no readable {kind[1:]} file ({first_line(error)}): write it anew.") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: every entry must be an object with a path and a prompt.")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        import duckdb
    except ImportError as error:
        raise UserError(f'{path}: parquet files are read by duckdb: pip install "overopt[parquet]".') from error
    try:
        table = duckdb.connect().read_parquet(str(path))
        return [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    except duckdb.Error as error:
        raise UserError(f"{path} is no readable parquet file ({first_line(error)}): write it anew.") from error


# ------------------------------------------------------------------------------------------------------- their prompts


def with_prompts(pictures: Sequence[Picture], file: Path | None) -> tuple[list[Picture], list[BadPicture]]:
    """Pictures with their prompts, and those that cannot have one.

    Args:
        pictures: in order; of some the prompt may be known.
        file: one prompt a line, in the order of the pictures; or a table of paths and prompts, in any order, which may
            name a picture with several prompts. Without one, pictures that have no prompt yet are named by theirs.

    Raises UserError where there are more, or fewer, lines than pictures.
    """
    if file is None:
        named = [p if p.prompt is not None else replace(p, prompt=prompt_in(p.name)) for p in pictures]
        return _without_copies(named, [])
    if file.suffix.lower() in TABLES:
        return _without_copies(*_by_name(pictures, _named_prompts(file), file))
    if not file.is_file():
        raise UserError(f"--prompts={file}: no such file.")
    lines = [line.strip() for line in read_text(file, "--prompts=").rstrip().splitlines()]
    if len(lines) != len(pictures):
        where = f"the first without one is {pictures[len(lines)].name}" if len(lines) < len(pictures) else "one a line"
        raise UserError(f"--prompts={file} has {len(lines)} prompts for {len(pictures)} pictures: {where}.")
    return _without_copies([replace(p, prompt=line) for p, line in zip(pictures, lines, strict=True)], [])


def prompt_in(name: str) -> str:
    """The prompt that a file is named by: a_red_cat-0012.png is `a red cat`."""
    stem = re.sub(r"[_\s]+", " ", Path(name).stem)
    return re.sub(r"[ .-]*\(?\d+\)?$", "", stem).strip()


def _named_prompts(file: Path) -> list[tuple[str, str | None]]:
    rows = read_table(file)
    if not rows:
        raise UserError(f"{file} holds no prompt; write a row for each picture.")
    path, prompt = _column(rows, PATHS, file), _column(rows, PROMPTS, file)
    return [(str(row.get(path) or ""), row.get(prompt)) for row in rows]


def _by_name(
    pictures: Sequence[Picture], prompts: Sequence[tuple[str, str | None]], file: Path
) -> tuple[list[Picture], list[BadPicture]]:
    """In the order of the pictures; a table may name them from the root, by their folder, or by the file alone."""
    given: dict[str, list[str | None]] = {}
    for written, prompt in prompts:
        given.setdefault(os.path.normpath(written), []).append(prompt)
    alone = Counter(Path(picture.name).name for picture in pictures)
    matched, faults, used = [], [], set()
    for picture in pictures:
        names = [picture.name, *([str(picture.source)] if isinstance(picture.source, Path) else [])]
        if alone[Path(picture.name).name] == 1:
            names.append(Path(picture.name).name)
        name = next((name for name in map(os.path.normpath, names) if name in given), None)
        if name is None:
            faults.append(BadPicture(picture.name, f"{file} has no prompt for it"))
        else:
            used.add(name)
            matched += [replace(picture, prompt=prompt) for prompt in given[name]]
    faults += [BadPicture(name, f"{file} names it, and there is no such picture") for name in given if name not in used]
    return matched, faults


def _without_copies(pictures: Sequence[Picture], faults: list[BadPicture]) -> tuple[list[Picture], list[BadPicture]]:
    kept: dict[tuple[str, str], Picture] = {}
    for picture in pictures:
        prompt = picture.prompt.strip() if isinstance(picture.prompt, str) else ""
        if not prompt:
            faults.append(BadPicture(picture.name, "it has no prompt"))
        elif (picture.name, prompt) in kept:
            faults.append(BadPicture(picture.name, f"it is listed twice with the prompt {prompt!r}"))
        else:
            kept[picture.name, prompt] = replace(picture, prompt=prompt)
    return list(kept.values()), faults


def partners(
    pictures: Sequence[Picture], others: Sequence[Picture]
) -> tuple[list[tuple[Picture, Picture]], list[BadPicture]]:
    """Each picture with the other of the same name, whatever the folder and the format, and its prompt.

    Raises UserError where two of the others have one name.
    """
    by_name: dict[str, Picture] = {}
    for other, name in zip(others, _names_within(others), strict=True):
        if name in by_name and by_name[name].source != other.source:
            raise UserError(
                f"--against: {by_name[name].name} and {other.name} could both be the partner of {name}: keep one."
            )
        by_name[name] = other
    pairs, faults, used = [], [], set()
    for picture, name in zip(pictures, _names_within(pictures), strict=True):
        if name in by_name:
            used.add(name)
            pairs.append((picture, replace(by_name[name], prompt=picture.prompt)))
        else:
            faults.append(BadPicture(picture.name, "it has no partner of the same name in --against"))
    left = [by_name[name] for name in by_name if name not in used]
    return pairs, faults + [BadPicture(other.name, "it has no partner among the pictures") for other in left]


def _names_within(pictures: Sequence[Picture]) -> list[str]:
    """Names below the folder that all have in common, without their endings."""
    folders = {os.path.dirname(picture.name) for picture in pictures}  # noqa: PTH120 (names, not files)
    try:
        common = os.path.commonpath(list(folders))
    except ValueError:  # absolute and relative ones
        common = ""
    return [str(Path(os.path.relpath(picture.name, common or ".")).with_suffix("")) for picture in pictures]


# -------------------------------------------------------------------------------------------------------- opening them


def opened(pictures: Sequence[Picture]) -> Iterator[tuple[int, Pixels | BadPicture]]:
    """Each picture's place and pixels, or why it has none, in their order; a few are opened ahead by threads."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque = deque()
        for k, picture in enumerate(pictures):
            waiting.append((k, pool.submit(_tried, picture)))
            if len(waiting) > AHEAD:
                place, future = waiting.popleft()
                yield place, future.result()
        for place, future in waiting:
            yield place, future.result()


def _tried(picture: Picture) -> Pixels | BadPicture:
    try:
        return open_picture(picture)
    except BadPicture as bad:
        return bad


def open_picture(picture: Picture) -> Pixels:
    """RGB as a viewer shows it: upright by its EXIF tag, on white where it is transparent; 8 or 16 bits a channel.

    Colour profiles are not applied, as by the rewards' own packages. Raises BadPicture on what is no sound picture.
    """
    source = picture.source
    if isinstance(source, Path) and not source.is_file():
        raise BadPicture(picture.name, "no such file")
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format in FRAMES:
                raise BadPicture(picture.name, f"it holds {frames} pictures; save the one to be scored by itself")
            return _rgb(image, picture.name)
    except Image.UnidentifiedImageError as error:
        raise BadPicture(picture.name, "it is no picture") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadPicture(picture.name, f"it cannot be opened ({first_line(error)})") from error


def _rgb(image: Image.Image, name: str) -> Pixels:
    kind = image.format
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and kind == "PNG"):  # which has 16 bits at most
        grey = np.asarray(upright).astype(np.uint16)
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.mode in ("I", "F"):
        raise BadPicture(name, "its values have no known white; save it with 8 or 16 bits a channel")
    if upright.has_transparency_data:
        seen = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return np.asarray(upright.convert("RGB"))


def as_images(pixels: Sequence[Pixels], device: torch.device) -> Float[Tensor, "b 3 h w"]:
    """Pictures of one size and depth, in [0, 1]."""
    most = np.iinfo(pixels[0].dtype).max
    stacked = torch.from_numpy(np.stack(pixels).astype(np.float32)).to(device)
    return (stacked / most).permute(0, 3, 1, 2).contiguous()
