"""Weights that are mapped from files, and how their memory, and what was freed, goes back to the system.

A mapped weight takes memory once something reads it, and keeps it until the system needs it elsewhere. A pass that
walks over a large model gives back what it has read, so that the model is never in memory as a whole beside what the
pass makes of it. Reading it again costs nothing but time: the file is mostly still in the system's cache.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

MADV_DONTNEED = 4
PAGE_BYTES = 4096
LARGE_BYTES = 3 * 2**27
"""Mapped memory that is worth giving back."""
RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ [0-9a-f]+ \S+ ([0-9]+)")
SMAPS, STATUS = Path("/proc/self/smaps"), Path("/proc/self/status")


def release_memory(weights: Iterable[Tensor]) -> None:
    """Give back the memory of mapped weights, and what freed tensors left behind in the heap.

    Between large tensors that come and go, small ones that stay keep glibc from shrinking its heap by itself.
    """
    release_mapped(weights)
    if sys.platform == "linux" and hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


def release_mapped(weights: Iterable[Tensor], least_bytes: int = LARGE_BYTES) -> None:
    """Give the memory of the mapped ones among `weights` back, where the process holds `least_bytes` of mapped files.

    Weights that something has written to, and weights that no file holds, keep theirs. Does nothing but on Linux.
    """
    if sys.platform != "linux" or mapped_bytes() < least_bytes:
        return
    mapped = _unwritten_ranges()
    for weight in weights:
        begin = weight.data_ptr()
        end = begin + weight.nbytes if weight.is_contiguous() else begin
        if any(low <= begin and end <= high for low, high in mapped):
            first = -(-begin // PAGE_BYTES) * PAGE_BYTES
            last = end // PAGE_BYTES * PAGE_BYTES
            if last > first:
                _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)


def mapped_bytes() -> int:
    """Resident memory of this process that files back, 0 where the system does not say."""
    try:
        found = re.search(r"^RssFile:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _unwritten_ranges() -> list[tuple[int, int]]:
    """Addresses that are mapped from a file and of which no page has been written to."""
    found: list[tuple[int, int]] = []
    current: tuple[int, int] | None = None
    for line in SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := RANGE.match(line):
            current = (int(match[1], 16), int(match[2], 16)) if match[3] != "0" else None
        elif current is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                found.append(current)
            current = None
    return found


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
