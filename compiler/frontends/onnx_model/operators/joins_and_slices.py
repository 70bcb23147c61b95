"""Operators that join tensors and cut pieces out of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import moved
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator


@operator("Concat", since=1)
def concat_along_1(*inputs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(inputs, axis)


@operator("Concat", since=4)
def concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, axis)


@operator("Split", since=1)
def split_by_attribute(
    x: Tensor, sizes: Known | None = None, *, axis: int = 0, split: list[int] | None = None, node: NodeContext
) -> tuple[Tensor, ...]:
    """The sizes are an attribute, or an input in the very first version."""
    return _pieces(x, split if sizes is None else sizes.sizes(), axis, node.output_count)


@operator("Split", since=13)
def split(
    x: Tensor, split: Known | None = None, *, axis: int = 0, num_outputs: int | None = None, node: NodeContext
) -> tuple[Tensor, ...]:
    return _pieces(x, None if split is None else split.sizes(), axis, num_outputs or node.output_count)


def _pieces(x: Tensor, sizes: Sequence[Any] | None, axis: int, count: int) -> tuple[Tensor, ...]:
    """Pieces of the sizes, or of one size but for a smaller last one."""
    if sizes is None:
        whole = x.shape[axis]
        each = (whole + count - 1) // count
        sizes = [each] * (count - 1) + [whole - each * (count - 1)]
    return tuple(torch.split(x, list(sizes), axis)) if len(sizes) > 1 else (x,)


@operator("Slice", since=1)
def slice_by_attributes(data: Tensor, *, starts: list[int], ends: list[int], axes: list[int] | None = None) -> Tensor:
    return _sliced(data, starts, ends, range(len(starts)) if axes is None else axes, [1] * len(starts))


@operator("Slice", since=10)
def slice_(data: Tensor, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None) -> Tensor:
    first = starts.sizes()
    listed = range(len(first)) if axes is None else [int(axis) for axis in axes.items()]
    strides = [1] * len(first) if steps is None else [int(step) for step in steps.items()]
    return _sliced(data, first, ends.sizes(), listed, strides)


def _sliced(
    data: Tensor, starts: Sequence[Any], ends: Sequence[Any], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            start, end, step = *_seen_backwards(data.shape[axis], start, end), -step
            data = moved(lambda one, dim=axis: one.flip(dim), data)
        data = torch.ops.aten.slice.Tensor(data, axis, start, end, step)
    return data


def _seen_backwards(size: Any, start: Any, end: Any) -> tuple[Any, Any]:
    """Bounds of a slice with a negative step as those of the flipped dim, in which index i is size - 1 - i."""
    return _flipped(size, start), _flipped(size, end)


def _flipped(size: Any, bound: Any) -> Any:
    if isinstance(bound, int) and bound < 0:
        return min(-1 - bound, sys.maxsize)
    place = size - 1 - bound
    return max(place, 0) if isinstance(place, int) else torch.sym_max(place, 0)  # type: ignore[no-untyped-call]


@operator("Trilu", since=14)
def trilu(x: Tensor, k: Known | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return moved(lambda one: one.triu(diagonal) if upper else one.tril(diagonal), x)
