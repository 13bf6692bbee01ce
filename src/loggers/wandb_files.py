"""W&B's own record of a run, run-ID.wandb in the folder of each session: reading it, and cutting off what a kill left.

The file is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) of protocol buffers: blocks of
32 KiB, of chunks that begin with a checksum, a length, and what part of a record they are.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

BLOCK, CHUNK_HEADER, FILE_HEADER = 32768, 7, b":W&B"  # the last is followed by three bytes of a version
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4

RowName = tuple[str, int]  # kind and iteration, which name a row of a run


@dataclass
class Session:
    """A session of a run as W&B has stored it."""

    file: Path

    @property
    def offline(self) -> bool:
        """Whether it was logged without a server."""
        return self.file.parent.name.startswith("offline-")

    @property
    def sent(self) -> bool:
        """Whether a server has rows of it: of one that was online, or that `wandb sync` has uploaded."""
        return not self.offline or self.file.with_suffix(".wandb.synced").exists()

    @property
    def ended(self) -> bool:
        """Whether it was brought to an end, and not killed."""
        return any(record.WhichOneof("record_type") == "exit" for _, record in records(self.file))

    @property
    def starting_step(self) -> int:
        """How many rows the server had when this session began; 0 while nobody has asked one."""
        state = self.file.with_suffix(".wandb.syncstate")
        return json.loads(state.read_text("utf-8")).get("starting_step", 0) if state.exists() else 0

    def rows(self) -> dict[int, RowName]:
        """W&B's step -> which row it is; of whole records."""
        found = {}
        for _, record in records(self.file):
            values = values_of(record)
            if "kind" in values:
                found[int(values["_step"])] = (str(values["kind"]), int(values["iteration"]))
        return found

    def cut(self, iteration: int | None) -> bool:
        """Cuts off a record that a kill has left half written and, if an iteration is given, rows after it.

        Returns whether anything of the run is left.
        """
        end, begun = CHUNK_HEADER, False
        for after, record in records(self.file):
            if iteration is not None and values_of(record).get("iteration", iteration) > iteration:
                break
            end, begun = after, begun or record.WhichOneof("record_type") == "run"
        if end < self.file.stat().st_size:
            os.truncate(self.file, end)
        return begun


def sessions(run_dir: Path) -> list[Session]:
    """Of a run, in order."""
    files = [path for path in (run_dir / "wandb").glob("*run-*/run-*.wandb") if not path.parent.is_symlink()]
    return [Session(path) for path in sorted(files, key=lambda path: path.parent.name.removeprefix("offline-"))]


def values_of(record: Record) -> dict[str, Any]:
    """Of a row; empty for records of other kinds."""
    items = record.history.item if record.WhichOneof("record_type") == "history" else []
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """Every whole record with the place in the file where it ends, up to the first that is not whole."""
    data = path.read_bytes()
    if data[: len(FILE_HEADER)] != FILE_HEADER:
        return
    at, parts = CHUNK_HEADER, b""
    while True:
        if BLOCK - at % BLOCK < CHUNK_HEADER:  # the rest of a block is padding
            at += BLOCK - at % BLOCK
        if at + CHUNK_HEADER > len(data):
            return
        checksum, length, kind = struct.unpack("<IHB", data[at : at + CHUNK_HEADER])
        part = data[at + CHUNK_HEADER : at + CHUNK_HEADER + length]
        if len(part) < length or zlib.crc32(bytes([kind]) + part) != checksum:
            return
        parts = part if kind in (WHOLE, FIRST) else parts + part
        at += CHUNK_HEADER + length
        if kind in (WHOLE, LAST):
            yield at, Record.FromString(parts)
