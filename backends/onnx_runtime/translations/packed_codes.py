"""Codes that are few bits in the file and others where they are read: shifts of bytes, which ONNX Runtime does once.

What is stored depends on no input, so that a session computes these nodes when it opens the file and keeps the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.quantization.packing import planes_of

END = 2**31 - 1


@translates("regraft.repack_codes.default")
def repack_codes(w: GraphWriter, node: fx.Node, packed: fx.Node, bits: int, to: int) -> ir.Value:
    """packed uint8 [..., count * bits / 8] to uint8 [..., count * to / 8]."""
    if bits == to:
        return w.value(packed)
    rank, width = len(shape_of(packed)), int(shape_of(packed)[-1])
    return _packed(w, _unpacked(w, w.value(packed), rank, width, bits), rank, bits, to)


def _unpacked(w: GraphWriter, packed: ir.Value, rank: int, width: int, bits: int) -> ir.Value:
    """A code a byte."""
    codes: ir.Value | None = None
    start, count = 0, width * 8 // bits
    for plane in planes_of(bits):
        stop = start + count * plane // 8
        part = packed if bits == plane else _sliced(w, packed, [start, stop, 1])
        part = _unpacked_plane(w, part, rank, plane)
        start = stop
        codes = part if codes is None else w.emit("BitwiseOr", _shifted(w, codes, plane, "LEFT"), part)
    assert codes is not None
    return codes


def _unpacked_plane(w: GraphWriter, packed: ir.Value, rank: int, bits: int) -> ir.Value:
    if bits == 8:
        return packed
    wide = w.emit("Unsqueeze", packed, w.constant([-1], np.int64))
    places = _shifted(w, wide, range(0, 8, bits), "RIGHT")
    codes = w.emit("BitwiseAnd", places, w.constant(2**bits - 1, np.uint8))
    return w.emit("Reshape", codes, w.constant([0] * (rank - 1) + [-1], np.int64))


def _packed(w: GraphWriter, codes: ir.Value, rank: int, bits: int, to: int) -> ir.Value:
    """`to` bits of each byte, in planes where there are several."""
    if to == 8:
        return codes
    planes, below = [], to
    for plane in planes_of(to):
        below -= plane
        high = _shifted(w, codes, below, "RIGHT") if below else codes
        if bits > below + plane:
            high = w.emit("BitwiseAnd", high, w.constant(2**plane - 1, np.uint8))
        packed = _sliced(w, high, [0, END, 8 // plane])
        for place in range(1, 8 // plane):
            later = _sliced(w, high, [place, END, 8 // plane])
            packed = w.emit("BitwiseOr", packed, _shifted(w, later, place * plane, "LEFT"))
        planes.append(packed)
    return planes[0] if len(planes) == 1 else w.emit("Concat", *planes, axis=rank - 1)


def _shifted(w: GraphWriter, codes: ir.Value, by: int | Sequence[int], direction: str) -> ir.Value:
    return w.emit("BitShift", codes, w.constant(np.array(by, np.uint8)), direction=direction)


def _sliced(w: GraphWriter, x: ir.Value, place: Sequence[int]) -> ir.Value:
    """Of the last axis, from start to stop by step."""
    start, stop, step = (w.constant([number], np.int64) for number in place)
    return w.emit("Slice", x, start, stop, w.constant([-1], np.int64), step)
