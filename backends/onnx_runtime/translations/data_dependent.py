"""Operators whose output sizes depend on values. The writer reads those sizes off the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.backends.onnx_runtime.translations.shapes import reshaped, shape_of

NON_ZERO_TYPES = (torch.bool, torch.float32, torch.int32, torch.int64, torch.uint8)
UNIQUE_TYPES = (torch.float32, torch.float64, torch.int64, torch.int8)
"""What ONNX Runtime has kernels for."""


@translates("aten.nonzero.default")
def nonzero(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    """torch lists one row of indices for every place, ONNX one for every dim."""
    held = result_type(x)
    value = w.value(x) if held in NON_ZERO_TYPES else w.cast(w.value(x), torch.bool)
    return w.emit("Transpose", w.emit("NonZero", value), perm=[1, 0])


@translates("aten.masked_select.default")
def masked_select(w: GraphWriter, node: fx.Node, x: fx.Node, mask: fx.Node) -> ir.Value:
    wide = w.emit("Expand", w.value(x), w.emit("Shape", w.value(mask)))
    condition = w.emit("Expand", w.value(mask), w.emit("Shape", w.value(x)))
    return w.emit("Compress", wide, w.emit("Reshape", condition, w.constant([-1], np.int64)))


@translates("aten._unique2.default")
def unique(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> tuple[ir.Value, ...]:
    values, inverse, counts = _unique(w, x, None)
    return values, w.emit("Reshape", inverse, w.emit("Shape", w.value(x))), counts


@translates("aten.unique_dim.default")
def unique_dim(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, *rest: Any) -> tuple[ir.Value, ...]:
    return _unique(w, x, dim)


def _unique(w: GraphWriter, x: fx.Node, axis: int | None) -> tuple[ir.Value, ...]:
    held = result_type(x)
    computed = held if held in UNIQUE_TYPES else torch.float64 if held.is_floating_point else torch.int64
    values, _, inverse, counts = w.emit_several("Unique", w.tensor(x, computed), outputs=4, axis=axis, sorted=1)
    return values if computed == held else w.cast(values, held), inverse, counts


@translates("aten.diagonal.default")
def diagonal(w: GraphWriter, node: fx.Node, x: fx.Node, offset: int, first: int, second: int) -> ir.Value:
    """[.., rows, columns] flattened is rows of `columns` items, in which the next of a diagonal is columns + 1 on."""
    before = shape_of(x)
    rank = len(before)
    first, second = first % rank, second % rank
    order = [dim for dim in range(rank) if dim not in (first, second)] + [first, second]
    value = w.emit("Transpose", w.value(x), perm=order) if order != list(range(rank)) else w.value(x)
    leading, (rows, columns) = [before[dim] for dim in order[:-2]], (before[first], before[second])
    flat = reshaped(w, value, [*leading, rows, columns], [*leading, rows * columns])
    start = offset if offset >= 0 else -offset * columns
    end = start + (shape_of(node)[-1] - 1) * (columns + 1) + 1
    axis = w.constant([rank - 2], np.int64)
    return w.emit("Slice", flat, w.sizes([start]), w.sizes([end]), axis, w.sizes([columns + 1]))
