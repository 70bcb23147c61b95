"""Gives back to the system what reading a model or a long prompt took and decoding does not need.

What the C library keeps of freed memory, and the pages of mapped weight files: ONNX Runtime maps a file of weights,
packs most of them into memory of its own when it opens the model, and reads the rest (an embedding's rows, say) where
it is mapped. Pages that are read again come back from the system's cache of the file. Linux only; elsewhere nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

MAPPINGS = Path("/proc/self/maps")


def return_free_memory(folder: Path | None = None) -> None:
    """Return what the C library keeps (glibc), and the pages of files in `folder` that are mapped and only read."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    if folder is not None and MAPPINGS.exists():
        for start, size in _mapped(f"{folder.resolve()}/"):
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _mapped(prefix: str) -> Iterator[tuple[int, int]]:
    """Address and bytes of every private mapping of a file whose path starts so: of pages that nobody writes."""
    for line in MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
        if len(fields) == 6 and fields[5].startswith(prefix) and fields[1].endswith("p"):
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            yield start, stop - start
