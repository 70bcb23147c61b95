"""Operators that move values without computing: reshapes, transposes, slices, joins.

Sizes are read off the nodes' symbolic shapes, so that a reshape with dynamic dims needs no arithmetic on shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size, same_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.served_types import in_served_type
from compiler.errors import CompilerError

TRILU_TYPES = (torch.float32, torch.float64, torch.float16, torch.int32, torch.int64, torch.bool)
PAD_TYPES = (*TRILU_TYPES, torch.int8, torch.uint8, torch.uint32, torch.uint64)
"""What ONNX Runtime has kernels for."""


def shape_of(node: fx.Node) -> list[Any]:
    """The symbolic shape of what a node computes."""
    return list(node.meta["val"].shape)


@translates(
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.reshape.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
    "aten.view.default",
)
def reshape(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
    return reshaped(w, w.value(x), shape_of(x), shape_of(node))


def reshaped(w: GraphWriter, value: ir.Value, before: Sequence[Any], after: Sequence[Any]) -> ir.Value:
    """`value` of shape `before` as shape `after`. Dims that stay in place are 0 in ONNX, and one other may be -1."""
    if len(before) == len(after) and all(same_size(a, b) for a, b in zip(before, after, strict=True)):
        return value
    if any(known_size(size) == 0 for size in after):
        return w.emit("Reshape", value, w.sizes(list(after)), allowzero=1)
    wanted: list[int | None] = []
    for index, size in enumerate(after):
        known = known_size(size)
        if known is None and index < len(before) and same_size(size, before[index]):
            known = 0
        wanted.append(known)
    if wanted.count(None) <= 1:
        shape = w.constant([-1 if size is None else size for size in wanted], np.int64)
    else:
        shape = w.sizes(list(after))
    return w.emit("Reshape", value, shape)


def transposed(w: GraphWriter, value: ir.Value, order: Sequence[int]) -> ir.Value:
    """`value` with its dims in `order`."""
    if list(order) == list(range(len(order))):
        return value
    return w.emit("Transpose", value, perm=[int(one) for one in order])


@translates("aten.transpose.int")
def transpose(w: GraphWriter, node: fx.Node, x: fx.Node, first: int, second: int) -> ir.Value:
    order = list(range(len(shape_of(x))))
    order[first], order[second] = order[second], order[first]
    return transposed(w, w.value(x), order)


@translates("aten.permute.default")
def permute(w: GraphWriter, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> ir.Value:
    return transposed(w, w.value(x), [dim % len(dims) for dim in dims])


@translates("aten.movedim.int")
def movedim(w: GraphWriter, node: fx.Node, x: fx.Node, source: int, target: int) -> ir.Value:
    rank = len(shape_of(x))
    order = [dim for dim in range(rank) if dim != source % rank]
    order.insert(target % rank, source % rank)
    return transposed(w, w.value(x), order)


@translates("aten.t.default", "aten.numpy_T.default", "aten.mT.default")
def reverse_dims(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    order = list(range(len(shape_of(x))))
    order[-2:] = reversed(order[-2:])
    if "numpy_T" in str(node.target):
        order = list(reversed(range(len(shape_of(x)))))
    return transposed(w, w.value(x), order)


@translates("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
    return expanded(w, w.value(x), shape_of(x), shape_of(node))


def expanded(w: GraphWriter, value: ir.Value, before: Sequence[Any], after: Sequence[Any]) -> ir.Value:
    """`value` of shape `before` repeated to shape `after`; sizes that do not change are 1 in ONNX's Expand."""
    padded = [1] * (len(after) - len(before)) + list(before)
    if len(before) == len(after) and all(same_size(a, b) for a, b in zip(before, after, strict=True)):
        return value
    wanted = [1 if same_size(a, b) else b for a, b in zip(padded, after, strict=True)]
    return w.emit("Expand", value, w.sizes(wanted))


@translates("aten.repeat.default")
def repeat(w: GraphWriter, node: fx.Node, x: fx.Node, repeats: Sequence[Any]) -> ir.Value:
    before = shape_of(x)
    value = reshaped(w, w.value(x), before, [1] * (len(repeats) - len(before)) + before)
    return w.emit("Tile", value, w.sizes(repeats))


@translates("aten.repeat_interleave.self_int")
def repeat_interleave(w: GraphWriter, node: fx.Node, x: fx.Node, repeats: Any, dim: int | None, *rest: Any) -> ir.Value:
    """[.., n, ..] -> [.., n, 1, ..] -> [.., n, repeats, ..] -> [.., n * repeats, ..]"""
    if dim is None:
        raise CompilerError(
            "lowering to ONNX", "repeat_interleave without a dim", "Flatten first and give dim 0.", node.name
        )
    before = shape_of(x)
    dim %= len(before)
    value = w.emit("Unsqueeze", w.value(x), w.constant([dim + 1], np.int64))
    repeated = [*before[: dim + 1], repeats, *before[dim + 1 :]]
    value = expanded(w, value, [*before[: dim + 1], 1, *before[dim + 1 :]], repeated)
    return reshaped(w, value, repeated, shape_of(node))


@translates("aten.cat.default", "aten.concat.default")
def cat(w: GraphWriter, node: fx.Node, tensors: Sequence[fx.Node], dim: int) -> ir.Value:
    dtype = node.meta["val"].dtype
    parts = [one for one in tensors if shape_of(one) != [0]]
    return w.emit("Concat", *(w.tensor(one, dtype) for one in parts), axis=dim)


@translates("aten.stack.default")
def stack(w: GraphWriter, node: fx.Node, tensors: Sequence[fx.Node], dim: int) -> ir.Value:
    dtype, rank = node.meta["val"].dtype, len(shape_of(node))
    axis = w.constant([dim % rank], np.int64)
    return w.emit("Concat", *(w.emit("Unsqueeze", w.tensor(one, dtype), axis) for one in tensors), axis=dim % rank)


@translates("aten.split.Tensor", "aten.split_with_sizes.default", "aten.split.sizes", "aten.chunk.default")
def split(w: GraphWriter, node: fx.Node, x: fx.Node, parts: Any, dim: int) -> tuple[ir.Value, ...]:
    pieces = node.meta["val"]
    if len(pieces) == 1:
        return (w.value(x),)
    lengths = w.sizes([piece.shape[dim] for piece in pieces])
    return w.emit_several("Split", w.value(x), lengths, outputs=len(pieces), axis=dim)


@translates("aten.unbind.int")
def unbind(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int) -> tuple[ir.Value, ...]:
    count, axis = len(node.meta["val"]), w.constant([dim], np.int64)
    parts = (
        w.emit_several("Split", w.value(x), outputs=count, axis=dim, num_outputs=count) if count > 1 else (w.value(x),)
    )
    return tuple(w.emit("Squeeze", part, axis) for part in parts)


@translates("aten.slice.Tensor")
def slice_(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, start: Any, end: Any, step: int) -> ir.Value:
    before, after = shape_of(x), shape_of(node)
    whole = (start is None or known_size(start) == 0) and step == 1 and same_size(before[dim], after[dim])
    return w.value(x) if whole else sliced(w, w.value(x), dim, start, end, step)


def sliced(w: GraphWriter, value: ir.Value, dim: int, start: Any, end: Any, step: int = 1) -> ir.Value:
    """`value[..., start:end:step, ...]` along `dim`; None means from the first or to the last."""
    bounds = w.sizes([0 if start is None else start]), w.sizes([sys.maxsize if end is None else end])
    return w.emit("Slice", value, *bounds, w.constant([dim], np.int64), w.constant([step], np.int64))


@translates("aten.narrow.default")
def narrow(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, start: Any, length: Any) -> ir.Value:
    end = w.emit("Add", w.size(start), w.size(length))
    return w.emit("Slice", w.value(x), w.size(start), end, w.constant([dim], np.int64))


@translates("aten.select.int")
def select(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, index: Any) -> ir.Value:
    position = w.constant(int(index), np.int64) if known_size(index) is not None else w.tensor(index, torch.int64)
    return w.emit("Gather", w.value(x), position, axis=dim)


@translates("aten.flip.default")
def flip(w: GraphWriter, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> ir.Value:
    count = len(dims)
    last, before_first = w.constant([-1] * count, np.int64), w.constant([-sys.maxsize] * count, np.int64)
    return w.emit(
        "Slice", w.value(x), last, before_first, w.constant(list(dims), np.int64), w.constant([-1] * count, np.int64)
    )


@translates("aten.roll.default")
def roll(w: GraphWriter, node: fx.Node, x: fx.Node, shifts: Sequence[Any], dims: Sequence[int]) -> ir.Value:
    if not dims:
        raise CompilerError("lowering to ONNX", "roll without dims", "Give the dims to roll along.", node.name)
    value = w.value(x)
    for shift, dim in zip(shifts, dims, strict=True):
        if known_size(shift) == 0:
            continue
        cut = (
            w.emit("Mul", w.size(shift), w.constant([-1], np.int64))
            if known_size(shift) is None
            else w.size(-int(shift))
        )
        axis, step = w.constant([dim], np.int64), w.constant([1], np.int64)
        tail = w.emit("Slice", value, cut, w.constant([sys.maxsize], np.int64), axis, step)
        head = w.emit("Slice", value, w.constant([0], np.int64), cut, axis, step)
        value = w.emit("Concat", tail, head, axis=dim)
    return value


@translates("aten.pad.default", "aten.constant_pad_nd.default")
def pad(w: GraphWriter, node: fx.Node, x: fx.Node, widths: Sequence[Any], *rest: Any) -> ir.Value:
    """torch names the widths from the last dim backwards, ONNX all starts and then all ends."""
    mode, fill = (rest[0], rest[1]) if len(rest) == 2 else ("constant", rest[0])
    if all(known_size(width) == 0 for width in widths):
        return w.value(x)
    rank = len(shape_of(x))
    starts, ends = [0] * rank, [0] * rank
    for index in range(len(widths) // 2):
        starts[rank - 1 - index], ends[rank - 1 - index] = widths[2 * index], widths[2 * index + 1]
    onnx_mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]

    def emit(computed: torch.dtype) -> ir.Value:
        value = w.tensor(fill or 0, computed) if onnx_mode == "constant" else None
        return w.emit("Pad", w.tensor(x, computed), w.sizes([*starts, *ends]), value, mode=onnx_mode)

    return in_served_type(w, node.meta["val"].dtype, PAD_TYPES, emit)


@translates("aten.tril.default")
def tril(w: GraphWriter, node: fx.Node, x: fx.Node, diagonal: int) -> ir.Value:
    return _triangle(w, node, x, diagonal, upper=0)


@translates("aten.triu.default")
def triu(w: GraphWriter, node: fx.Node, x: fx.Node, diagonal: int) -> ir.Value:
    return _triangle(w, node, x, diagonal, upper=1)


def _triangle(w: GraphWriter, node: fx.Node, x: fx.Node, diagonal: int, upper: int) -> ir.Value:
    place = w.constant(diagonal, np.int64)
    dtype = node.meta["val"].dtype
    return in_served_type(
        w, dtype, TRILU_TYPES, lambda computed: w.emit("Trilu", w.tensor(x, computed), place, upper=upper)
    )


@translates("aten.diff.default")
def diff(w: GraphWriter, node: fx.Node, x: fx.Node, order: int, dim: int, before: Any, after: Any) -> ir.Value:
    """x[1:] - x[:-1] along `dim`, with what stands before and after joined on first."""
    parts = [w.value(one) for one in (before, x, after) if one is not None]
    value = w.emit("Concat", *parts, axis=dim) if len(parts) > 1 else parts[0]
    for _ in range(order):
        value = w.emit("Sub", sliced(w, value, dim, 1, None), sliced(w, value, dim, None, -1))
    return value
