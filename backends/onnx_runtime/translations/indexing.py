"""Gathers, scatters and advanced indexing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.served_types import in_served_type
from compiler.backends.onnx_runtime.translations.shapes import expanded, reshaped, shape_of, transposed
from compiler.errors import CompilerError


@translates("aten.embedding.default")
def embedding(w: GraphWriter, node: fx.Node, weight: fx.Node, indices: fx.Node, *rest: Any) -> ir.Value:
    return w.emit("Gather", w.value(weight), w.value(indices), axis=0)


@translates("aten.index_select.default")
def index_select(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, indices: fx.Node) -> ir.Value:
    return w.emit("Gather", w.value(x), w.value(indices), axis=dim)


@translates("aten.gather.default")
def gather(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, indices: fx.Node, *rest: Any) -> ir.Value:
    return w.emit("GatherElements", w.value(x), w.value(indices), axis=dim)


@translates("aten.scatter.src")
def scatter(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, indices: fx.Node, source: fx.Node) -> ir.Value:
    return w.emit("ScatterElements", w.value(x), w.value(indices), w.value(source), axis=dim)


@translates("aten.scatter.value")
def scatter_value(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, indices: fx.Node, fill: Any) -> ir.Value:
    scalar = w.tensor(fill, node.meta["val"].dtype)
    source = expanded(w, scalar, [], shape_of(indices))
    return w.emit("ScatterElements", w.value(x), w.value(indices), source, axis=dim)


REDUCED_TYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.int8, torch.uint8)
"""What ONNX Runtime's scatters reduce."""


@translates("aten.scatter_add.default")
def scatter_add(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, indices: fx.Node, source: fx.Node) -> ir.Value:
    return _scattered(w, node, x, dim, indices, source, "add")


@translates("aten.scatter_reduce.two")
def scatter_reduce(
    w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, indices: fx.Node, source: fx.Node, how: str, include: bool
) -> ir.Value:
    reduction = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}.get(how)
    if reduction is None or not include:
        problem = f"scatter_reduce by {how}" + ("" if include else " without the values that stand there")
        raise CompilerError("lowering to ONNX", problem, "Use sum, prod, amax or amin of all values.", node.name)
    return _scattered(w, node, x, dim, indices, source, reduction)


def _scattered(
    w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, indices: fx.Node, source: fx.Node, reduction: str
) -> ir.Value:
    def emit(computed: torch.dtype) -> ir.Value:
        data, updates = w.tensor(x, computed), w.tensor(source, computed)
        return w.emit("ScatterElements", data, w.value(indices), updates, axis=dim, reduction=reduction)

    return in_served_type(w, node.meta["val"].dtype, REDUCED_TYPES, emit)


@translates("aten.index.Tensor")
def index(w: GraphWriter, node: fx.Node, x: fx.Node, indices: Sequence[fx.Node | None]) -> ir.Value:
    """x[i, :, j]: one index is a Gather; several are broadcast, stacked and looked up with GatherND."""
    places = [place for place, one in enumerate(indices) if one is not None]
    tensors = [one for one in indices if one is not None]
    _require_integers(node, tensors)
    if len(places) == 1:
        return w.emit("Gather", w.value(x), w.value(tensors[0]), axis=places[0])
    rank = len(shape_of(x))
    rest = [dim for dim in range(rank) if dim not in places]
    value = transposed(w, w.value(x), [*places, *rest])
    picked = w.emit("GatherND", value, _stacked(w, tensors))
    contiguous = places == list(range(places[0], places[-1] + 1))
    if contiguous and places[0] > 0:
        index_rank = max(len(shape_of(one)) for one in tensors)
        before = list(range(index_rank, index_rank + places[0]))
        after = list(range(index_rank + places[0], index_rank + len(rest)))
        picked = transposed(w, picked, [*before, *range(index_rank), *after])
    return picked


@translates("aten.index_put.default")
def index_put(
    w: GraphWriter, node: fx.Node, x: fx.Node, indices: Sequence[fx.Node | None], values: fx.Node, accumulate: bool
) -> ir.Value:
    tensors = [one for one in indices if one is not None]
    _require_integers(node, tensors)
    if any(one is None for one in indices[: len(tensors)]):
        raise CompilerError("lowering to ONNX", "index_put that skips a dim", "Index the leading dims.", node.name)
    where = broadcast_shape([shape_of(one) for one in tensors])
    written = [*where, *shape_of(x)[len(tensors) :]]
    updates = expanded(w, w.tensor(values, node.meta["val"].dtype), shape_of(values), written)
    return w.emit("ScatterND", w.value(x), _stacked(w, tensors), updates, reduction="add" if accumulate else None)


def _stacked(w: GraphWriter, tensors: Sequence[fx.Node]) -> ir.Value:
    """The index tensors broadcast to one shape and joined in a last dim."""
    shape = broadcast_shape([shape_of(one) for one in tensors])
    columns = []
    for one in tensors:
        column = expanded(w, w.tensor(one, torch.int64), shape_of(one), shape)
        columns.append(reshaped(w, column, shape, [*shape, 1]))
    return w.emit("Concat", *columns, axis=len(shape)) if len(columns) > 1 else columns[0]


def broadcast_shape(shapes: Sequence[Sequence[Any]]) -> list[Any]:
    """The shape that the shapes broadcast to; sizes may be symbolic."""
    rank = max(len(shape) for shape in shapes)
    padded = [[1] * (rank - len(shape)) + list(shape) for shape in shapes]
    return [next((size for size in sizes if known_size(size) != 1), 1) for sizes in zip(*padded, strict=True)]


def _require_integers(node: fx.Node, tensors: Sequence[fx.Node]) -> None:
    if any(one.meta["val"].dtype in (torch.bool, torch.uint8) for one in tensors):
        problem = "indexing with a mask gives a shape that depends on values"
        raise CompilerError("lowering to ONNX", problem, "Use torch.where, or masked_fill.", node.name)


@translates("aten.masked_scatter.default")
def masked_scatter(w: GraphWriter, node: fx.Node, x: fx.Node, mask: fx.Node, source: fx.Node) -> ir.Value:
    """The n-th true place of the mask takes the n-th value of the source."""
    flat = w.constant([-1], np.int64)
    wide = expanded(w, w.value(mask), shape_of(mask), shape_of(x))
    chosen = w.emit("Reshape", wide, flat)
    order = w.emit(
        "Sub", w.emit("CumSum", w.cast(chosen, torch.int64), w.constant(0, np.int64)), w.constant(1, np.int64)
    )
    order = w.emit("Max", order, w.constant(0, np.int64))
    picked = w.emit("Gather", w.emit("Reshape", w.value(source), flat), order, axis=0)
    value = w.emit("Where", chosen, picked, w.emit("Reshape", w.value(x), flat))
    return w.emit("Reshape", value, w.emit("Shape", w.value(x)))
