"""The memory of a decoder's states: one row a text, shared by past and present so that no call copies it.

A state with room for tokens (keys, values) starts small and doubles, up to the context's length. Its arrays are pages
that the system zeroes when they are first touched: room that no token reached takes no memory, and what was outgrown
goes back at once, where the C library would keep it and hand it out again. A state of fixed size (of a recurrence or a
window) shares its array too: in what the ONNX Runtime backend writes, all of such a past is read before its present is
written.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.runtime.manifest import Manifest

FIRST_CAPACITY = 256
Array = np.ndarray[Any, Any]


@dataclass
class StateBuffer:
    """One state: `past` and `present` are names, the array [rows, ...] lies in `pages`.

    `room` is the axis of tokens, if it has one.
    """

    past: str
    present: str
    room: int | None
    array: Array
    pages: mmap.mmap


class StateBuffers:
    """All states of `rows` texts at once. `capacity` is how many tokens they have room for."""

    def __init__(self, manifest: Manifest, rows: int, limit: int | None) -> None:
        """`limit` is the context's length; None lets the capacity grow for ever."""
        assert manifest.generation is not None
        self.rows = rows
        self.limit = limit
        self.capacity = FIRST_CAPACITY if limit is None else min(FIRST_CAPACITY, limit)
        specs = {spec.name: spec for spec in manifest.inputs}
        self.states = []
        for state in manifest.generation.states:
            spec = specs[state.past]
            room = next((axis for axis, dim in enumerate(spec.shape) if axis > 0 and isinstance(dim, str)), None)
            sizes = [self.capacity if isinstance(dim, str) else dim for dim in spec.shape[1:]]
            array, pages = _untouched([rows, *sizes], np.dtype(spec.dtype))
            self.states.append(StateBuffer(state.past, state.present, room, array, pages))

    @property
    def recurrent(self) -> bool:
        """Whether a state has no room for tokens: then tokens that were read cannot be taken back."""
        return any(state.room is None for state in self.states)

    @property
    def bytes(self) -> int:
        """What all arrays take once every token of their capacity has been used."""
        return sum(state.array.nbytes for state in self.states)

    def fits(self, tokens: int) -> bool:
        """Whether there is room for so many tokens in a row."""
        return tokens <= self.capacity

    def grow(self, tokens: int, used: Sequence[int]) -> None:
        """Make room for `tokens` in every row and keep its first `used`. One state at a time, to spare memory."""
        capacity = self.capacity
        while capacity < tokens:
            capacity *= 2
        self.capacity = capacity if self.limit is None else min(capacity, max(self.limit, tokens))
        for state in self.states:
            if state.room is None:
                continue
            old = state.array
            grown, pages = _untouched(
                [*old.shape[: state.room], self.capacity, *old.shape[state.room + 1 :]], old.dtype
            )
            for row, count in enumerate(used):
                kept = (slice(None),) * (state.room - 1) + (slice(count),)
                grown[row][kept] = old[row][kept]
            state.array, state.pages = grown, pages

    def move(self, source: int, target: int, used: int) -> None:
        """Copy the first `used` tokens of a row to another."""
        for state in self.states:
            kept = (slice(None),) * (state.room - 1) + (slice(used),) if state.room is not None else ...
            state.array[target][kept] = state.array[source][kept]

    def clear(self, row: int) -> None:
        """Forget a text: fixed states become zeros; room for tokens, which is never read again, goes to the system."""
        for state in self.states:
            if state.room is None:
                state.array[row] = 0
            else:
                _return_row(state, row)

    def arrays(self, rows: slice) -> Sequence[tuple[str, str, Array]]:
        """The names of every past and present, and the part of memory that a call with these rows reads and writes."""
        return [(state.past, state.present, state.array[rows]) for state in self.states]


def _return_row(state: StateBuffer, row: int) -> None:
    """Give the whole pages inside a row back to the system; they are zeros when they are touched again."""
    if sys.platform == "linux":
        row_bytes = state.array.nbytes // len(state.array)
        start = -(-row * row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (row + 1) * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE - start
        if size > 0:
            state.pages.madvise(mmap.MADV_DONTNEED, start, size)


def _untouched(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[Array, mmap.mmap]:
    """Zeros that take memory page by page, as they are written; and these pages."""
    size = math.prod(shape) * dtype.itemsize
    private = (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,) if sys.platform != "win32" else ()
    pages = mmap.mmap(-1, size, *private)
    return np.frombuffer(pages, dtype).reshape(shape), pages
