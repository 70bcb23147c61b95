"""bfloat16 and float16 safetensors  ->  float32 safetensors in a temporary folder, which are then mapped, not read

A graph that computes in float32 wants twice the bytes that such a checkpoint has. Read by transformers they are held
next to the file's own pages; mapped from a file, weights take memory only while something reads them, and the system
can have it back (compiler/mapped_weights.py). The folder is removed as soon as the files are mapped: the space on disk
is free again when the process ends, however it ends.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compiler.frontends.safetensors_files import INDEX, weight_files

NARROW = {"BF16": "<u2", "F16": "<f2"}
"""The types that are widened, as numpy reads them."""
WORTHWHILE_BYTES = 2**28
"""Smaller checkpoints are read: they need no disk."""
NUMBERS_AT_ONCE = 2**22


@contextmanager
def widened_checkpoint(doing: str, folder: Path) -> Iterator[Path]:
    """A folder with the checkpoint's weights in float32 while the block runs, or `folder` itself where that is no use:
    nothing in it is narrow, it is small, or the disk has no room.
    """
    files = weight_files(doing, folder)
    headers = {path: _header(path) for path in files}
    wide_bytes = sum(_wide_bytes(entry) for header in headers.values() for entry in header.values())
    narrow = any(entry["dtype"] in NARROW for header in headers.values() for entry in header.values())
    if not narrow or wide_bytes < WORTHWHILE_BYTES or shutil.disk_usage(tempfile.gettempdir()).free < 2 * wide_bytes:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="regraft-weights-") as scratch:
        for path, header in headers.items():
            _widen(path, header, Path(scratch) / path.name)
        for path in folder.glob("*.json"):
            if path.name != INDEX:
                shutil.copyfile(path, Path(scratch) / path.name)
        if (folder / INDEX).is_file():
            shutil.copyfile(folder / INDEX, Path(scratch) / INDEX)
        yield Path(scratch)


def _header(path: Path) -> dict[str, Any]:
    """Name -> dtype, shape and data_offsets of every tensor."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
    return {name: entry for name, entry in found.items() if name != "__metadata__"}


def _wide_bytes(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end - begin) * (2 if entry["dtype"] in NARROW else 1)


def _widen(source: Path, header: dict[str, Any], target: Path) -> None:
    written: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, entry in header.items():
        size = _wide_bytes(entry)
        dtype = "F32" if entry["dtype"] in NARROW else entry["dtype"]
        written[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(written).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as narrow, target.open("wb") as wide:
        (length,) = struct.unpack("<Q", narrow.read(8))
        wide.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            narrow.seek(8 + length + begin)
            _copy(narrow, wide, end - begin, entry["dtype"])


def _copy(narrow: BinaryIO, wide: BinaryIO, count_bytes: int, dtype: str) -> None:
    while count_bytes:
        part = narrow.read(min(count_bytes, 2 * NUMBERS_AT_ONCE))
        count_bytes -= len(part)
        if dtype == "BF16":  # the upper half of a float32
            wide.write((np.frombuffer(part, NARROW[dtype]).astype("<u4") << 16).tobytes())
        elif dtype == "F16":
            wide.write(np.frombuffer(part, NARROW[dtype]).astype("<f4").tobytes())
        else:
            wide.write(part)
