"""Named arrays in .npz files: written with the same bytes every time, read without trust in what they declare."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError

LARGEST_BYTES = 2 * 2**30
"""Arrays of a file together: more is taken for a bomb."""

Arrays = dict[str, np.ndarray[Any, Any]]

_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays as an uncompressed .npz with fixed timestamps, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(
                buffer, np.ascontiguousarray(array).reshape(array.shape), version=(1, 0), allow_pickle=False
            )
            entry = zipfile.ZipInfo(f"{name}.npy", _FIXED_TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue())


def read_tensors(path: Path, largest_bytes: int = LARGEST_BYTES) -> Arrays:
    """Read every array of an .npz.

    Pickled objects, and files that unfold to more than `largest_bytes`, are refused with CompilerError.
    """
    doing = f"reading {path}"
    hint = "It should be an .npz that numpy.savez wrote from plain arrays, one a name."
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total > largest_bytes:
                problem = f"it unfolds to {total:,} bytes, and {largest_bytes:,} is the most that is read"
                raise CompilerError(doing, problem, "Take fewer or smaller arrays.")
            return {entry.filename.removesuffix(".npy"): _read_array(archive.read(entry)) for entry in entries}
    except FileNotFoundError:
        raise CompilerError(doing, "there is no such file", hint) from None
    except IsADirectoryError:
        raise CompilerError(doing, "it is a folder", hint) from None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CompilerError(doing, f"it is not a readable .npz file ({error})", hint) from None


def _read_array(data: bytes) -> np.ndarray[Any, Any]:
    """The array of one .npy. Nothing is allocated for more elements than the file has."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream)
    if dtype.hasobject or dtype.fields is not None:
        raise ValueError("it holds pickled Python objects")
    count, held = math.prod(shape), len(data) - stream.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != held:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} does not have {held:,} bytes")
    flat = np.frombuffer(data, dtype, count, stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C").copy()
