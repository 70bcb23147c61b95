"""Shape arithmetic: what operators that arrange numbers do with known ones, symbolic sizes among them.

Everything here is numpy over arrays of Python objects, so that `2 * batch` stays the symbolic int that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from compiler.frontends.onnx_model.element_types import dtype_of
from compiler.frontends.onnx_model.known import Known, is_symbolic, object_array
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, known_operator, operator


@operator("Shape")
def shape(x: Value, *, start: int = 0, end: int | None = None) -> Known:
    return Known.of(list(x.shape)[start:end])


@operator("Size")
def size(x: Value) -> Known:
    return Known.of(math.prod(x.shape))


@known_operator("Identity")
def identity(x: Known) -> Known:
    return x


@known_operator("Cast")
def cast(x: Known, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    dtype = dtype_of(to)
    if dtype not in (torch.int64, torch.int32, torch.float32, torch.float64, torch.bool):
        return NotImplemented
    return Known(each(_caster(dtype), x.objects()), dtype)


def _caster(dtype: torch.dtype) -> Callable[[Any], Any]:
    if dtype == torch.bool:
        return lambda item: item if isinstance(item, (bool, torch.SymBool)) else item != 0
    if dtype.is_floating_point:
        return lambda item: torch.sym_float(item) if is_symbolic(item) else float(item)  # type: ignore[no-untyped-call]
    return lambda item: torch.sym_int(item) if is_symbolic(item) else int(item)  # type: ignore[no-untyped-call]


def each(function: Callable[..., Any], *arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`function` of the items of arrays that are broadcast together."""
    spread = np.broadcast_arrays(*arrays)
    result = np.empty(spread[0].shape, dtype=object)
    for index in np.ndindex(result.shape):
        result[index] = function(*(one[index] for one in spread))
    return result


@known_operator("Concat")
def concat(*inputs: Known, axis: int = 0) -> Known:
    return Known(np.concatenate([one.objects() for one in inputs], axis), inputs[0].dtype)


@known_operator("Gather")
def gather(data: Known, indices: Known, *, axis: int = 0) -> Any:
    if not indices.is_plain:
        return NotImplemented
    taken = np.take(data.objects(), np.asarray(indices.objects(), dtype=np.int64), axis)
    return Known(taken if isinstance(taken, np.ndarray) else object_array(taken), data.dtype)


@known_operator("Unsqueeze")
def unsqueeze(x: Known, axes: Known | None = None, *, node: NodeContext) -> Known:
    listed = listed_axes(axes, node)
    return Known(np.expand_dims(x.objects(), tuple(listed or ())), x.dtype)


@known_operator("Squeeze")
def squeeze(x: Known, axes: Known | None = None, *, node: NodeContext) -> Known:
    listed = listed_axes(axes, node)
    return Known(np.squeeze(x.objects(), None if listed is None else tuple(listed)), x.dtype)


def listed_axes(axes: Known | None, node: NodeContext) -> Sequence[int] | None:
    """Axes from an input, or from the attribute of earlier versions."""
    if axes is not None:
        return [int(item) for item in axes.items()]
    attribute = node.node.attributes.get("axes")
    return None if attribute is None else list(attribute.value)


@known_operator("Slice")
def slice_(
    data: Known, starts: Known | None = None, ends: Known | None = None, axes: Known | None = None,
    steps: Known | None = None, *, node: NodeContext,
) -> Any:  # fmt: skip
    given = [one for one in (starts, ends, axes, steps) if one is not None]
    if any(not one.is_plain for one in given):
        return NotImplemented
    attributes = node.node.attributes
    first = starts.items() if starts else list(attributes["starts"].value)
    last = ends.items() if ends else list(attributes["ends"].value)
    listed = listed_axes(axes, node) or range(len(first))
    step = steps.items() if steps else [1] * len(first)
    index: list[Any] = [slice(None)] * data.array.ndim
    for axis, begin, end, stride in zip(listed, first, last, step, strict=True):
        stop = None if stride < 0 and end <= -data.shape[axis] - 1 else end
        index[axis] = slice(begin, stop, stride)
    return Known(data.objects()[tuple(index)], data.dtype)


@known_operator("Reshape")
def reshape(x: Known, shape: Known | None = None, *, node: NodeContext, allowzero: int = 0) -> Any:
    if shape is None or not shape.is_plain:
        return NotImplemented
    sizes = [x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(shape.items())]
    return Known(x.objects().reshape(sizes), x.dtype)


@known_operator("Transpose")
def transpose(x: Known, *, perm: list[int] | None = None) -> Known:
    return Known(x.objects().transpose(perm), x.dtype)


@known_operator("Where")
def where(condition: Known, left: Known, right: Known) -> Any:
    if not condition.is_plain:
        return NotImplemented
    return Known(each(lambda c, x, y: x if c else y, condition.objects(), left.objects(), right.objects()), left.dtype)


@known_operator("ConstantOfShape")
def constant_of_shape(shape: Known, *, value: Known | None = None) -> Any:
    if not shape.is_plain or math.prod(shape.items()) > 1024:
        return NotImplemented
    filled = np.empty(shape.items(), dtype=object)
    filled[...] = 0.0 if value is None else value.item()
    return Known(filled, torch.float32 if value is None else value.dtype)
