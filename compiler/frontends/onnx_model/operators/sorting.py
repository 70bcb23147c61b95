"""Operators that compare along a dim: the largest, where they stand, the different ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import as_dtype, widened
from compiler.frontends.onnx_model.known import Known, Size
from compiler.frontends.onnx_model.operator_table import operator


@operator("TopK", since=1)
def top_k_by_attribute(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    return _top(x, k, axis, descending=True)


@operator("TopK", since=10)
def top_k(x: Tensor, k: Known, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    return _top(x, k.sizes()[0], axis, descending=bool(largest))


def _top(x: Tensor, count: Size, axis: int, *, descending: bool) -> tuple[Tensor, Tensor]:
    """Of equal values the one with the lower index comes first, which torch's own topk does not promise."""
    values, places = torch.sort(widened(x), dim=axis, descending=descending, stable=True)
    first = torch.ops.aten.slice.Tensor
    return first(as_dtype(values, x.dtype), axis, 0, count), first(places, axis, 0, count)


def _register(name: str, function: Callable[..., Tensor]) -> None:
    @operator(name)
    def place(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        data = widened(data)
        data = data.to(torch.uint8) if data.dtype == torch.bool else data
        if not select_last_index:
            return function(data, axis, keepdim=bool(keepdims))
        return data.shape[axis] - 1 - function(data.flip(axis), axis, keepdim=bool(keepdims))


_register("ArgMax", torch.argmax)
_register("ArgMin", torch.argmin)


@operator("Unique", since=11)
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The different values (or slices along `axis`), where each comes first, which one every item is, and their counts.

    They stand in ascending order, or in that of their first appearance.
    """
    if axis is None:
        x, axis = x.flatten(), 0
        values, which, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True)
    else:
        values, which, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(x.shape[axis])
    first = torch.full_like(counts, x.shape[axis]).scatter_reduce(0, which, places, "amin")
    if sorted:
        return values, first, which, counts
    order = first.argsort()
    return values.index_select(axis, order), first[order], order.argsort()[which], counts[order]
