"""Reductions, repetitions and ranges of numbers that are known while reading, symbolic sizes among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from compiler.frontends.onnx_model.known import LARGEST_FOLDED, Known, object_array
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import known_operator
from compiler.frontends.onnx_model.operators.known_numbers import listed_axes

REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "ReduceSum": lambda left, right: left + right,
    "ReduceProd": lambda left, right: left * right,
    "ReduceMax": lambda left, right: torch.sym_max(left, right),  # type: ignore[no-untyped-call]
    "ReduceMin": lambda left, right: torch.sym_min(left, right),  # type: ignore[no-untyped-call]
}
INTEGERS = (torch.int64, torch.int32)


def _reduction(name: str) -> None:
    function = np.frompyfunc(REDUCTIONS[name], 2, 1)

    @known_operator(name)
    def reduce(
        x: Known, axes: Known | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, node: NodeContext
    ) -> Any:
        listed = listed_axes(axes, node)
        if x.dtype not in INTEGERS or x.size == 0 or (not listed and noop_with_empty_axes):
            return NotImplemented
        reduced: Any = x.objects()
        for axis in listed or range(reduced.ndim):
            reduced = object_array_of(function.reduce(reduced, axis=axis, keepdims=True))
        if not keepdims:
            reduced = np.squeeze(reduced, tuple(listed) if listed else None)
        return Known(reduced, x.dtype)


for _name in REDUCTIONS:
    _reduction(_name)


def object_array_of(result: Any) -> np.ndarray[Any, Any]:
    """numpy gives the item itself where an array has no dims left."""
    return result if isinstance(result, np.ndarray) else object_array(result)


@known_operator("CumSum")
def cumsum(x: Known, axis: Known, *, exclusive: int = 0, reverse: int = 0) -> Any:
    if exclusive or reverse or x.dtype not in INTEGERS:
        return NotImplemented
    return Known(np.cumsum(x.objects(), axis=axis.item(), dtype=object), x.dtype)


@known_operator("Range")
def range_(start: Known, limit: Known, delta: Known) -> Any:
    bounds = (start, limit, delta)
    if start.dtype not in INTEGERS or not all(one.is_plain for one in bounds):
        return NotImplemented
    numbers = range(*(int(one.item()) for one in bounds))
    return Known.of(list(numbers), start.dtype) if len(numbers) <= LARGEST_FOLDED else NotImplemented


@known_operator("Expand")
def expand(x: Known, shape: Known) -> Any:
    if not shape.is_plain:
        return NotImplemented
    sizes = np.broadcast_shapes(x.shape, tuple(shape.sizes()))
    return Known(np.broadcast_to(x.objects(), sizes), x.dtype) if math.prod(sizes) <= LARGEST_FOLDED else NotImplemented


@known_operator("Tile")
def tile(x: Known, repeats: Known) -> Any:
    if not repeats.is_plain or math.prod(repeats.items()) * x.size > LARGEST_FOLDED:
        return NotImplemented
    return Known(np.tile(x.objects(), repeats.items()), x.dtype)


@known_operator("Flatten")
def flatten(x: Known, *, axis: int = 1) -> Known:
    place = axis if axis >= 0 else axis + len(x.shape)
    return Known(x.objects().reshape(math.prod(x.shape[:place]), math.prod(x.shape[place:])), x.dtype)


@known_operator("Split")
def split(x: Known, sizes: Known | None = None, *, axis: int = 0, node: NodeContext) -> Any:
    """Into the sizes that an input or, in early versions, an attribute states, otherwise into equal parts."""
    stated = node.node.attributes.get("split")
    if sizes is not None:
        if not sizes.is_plain:
            return NotImplemented
        ends: Any = np.cumsum(np.asarray(sizes.items(), dtype=np.int64))
    elif stated is not None:
        ends = np.cumsum(list(stated.value))
    else:
        largest = -(-x.shape[axis] // node.output_count)
        ends = np.minimum(np.arange(1, node.output_count + 1) * largest, x.shape[axis])
    return tuple(Known(part, x.dtype) for part in np.split(x.objects(), ends[:-1], axis))
