"""Operators that reduce dims to one number: sums, means, extremes, norms.

Before opset 18 (13 for ReduceSum) the axes are an attribute, from then on an input that must be known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import as_dtype, widened
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.operator_table import operator

Reduction = Callable[[Tensor, list[int], bool], Tensor]
"""A tensor, the dims to reduce (none is every one of none), whether they stay with size 1 -> the reduced tensor."""


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dims, keepdim=keep, dtype=x.dtype) if dims else x


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if not dims:
        return x
    if x.is_floating_point():
        return x.mean(dims, keepdim=keep)
    return x.double().mean(dims, keepdim=keep).trunc()


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor], largest: bool) -> Reduction:
    def reduce(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if not dims:
            return x
        if any(isinstance(x.shape[dim], int) and x.shape[dim] == 0 for dim in dims):
            return x.new_full(_reduced_shape(x, dims, keep), _worst(x.dtype, largest))
        return function(x, dims, keepdim=keep)

    return reduce


def _worst(dtype: torch.dtype, largest: bool) -> Any:
    """What every number of a dtype is larger than, or smaller: the extreme of nothing."""
    if dtype == torch.bool:
        return not largest
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    limits = torch.iinfo(dtype)
    return limits.min if largest else limits.max


def _reduced_shape(x: Tensor, dims: list[int], keep: bool) -> list[Any]:
    sizes = [1 if dim in dims else size for dim, size in enumerate(x.shape)]
    return sizes if keep else [size for dim, size in enumerate(sizes) if dim not in dims]


def _euclidean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    x = x if x.is_floating_point() else x.double()
    return torch.linalg.vector_norm(x, 2.0, dims, keep) if dims else x.abs()


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    x = x if x.is_floating_point() else x.double()
    if any(isinstance(x.shape[dim], int) and x.shape[dim] == 0 for dim in dims):
        return x.new_full(_reduced_shape(x, dims, keep), float("-inf"))
    return torch.logsumexp(x, dims, keep) if dims else x


def _log_sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _sum(x if x.is_floating_point() else x.double(), dims, keep).log()


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _extreme(torch.amax, largest=True),
    "ReduceMin": _extreme(torch.amin, largest=False),
    "ReduceL1": lambda x, dims, keep: _sum(x.abs(), dims, keep),
    "ReduceL2": _euclidean,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": lambda x, dims, keep: _sum(x * x, dims, keep),
}


def _reduced(reduction: Reduction, data: Tensor, axes: Sequence[int], none_is_none: bool, keepdims: int) -> Tensor:
    dims = [int(axis) % data.dim() for axis in axes] if data.dim() else []
    if not dims and not none_is_none:
        dims = list(range(data.dim()))
    return as_dtype(reduction(widened(data), dims, bool(keepdims)), data.dtype)


def _register(name: str, reduction: Reduction) -> None:
    @operator(name, since=1)
    def by_attribute(data: Tensor, *, axes: list[int] | None = None, keepdims: int = 1) -> Tensor:
        return _reduced(reduction, data, axes or (), False, keepdims)

    @operator(name, since=13 if name == "ReduceSum" else 18)
    def by_input(
        data: Tensor, axes: Known | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        listed = [] if axes is None else axes.items()
        return _reduced(reduction, data, listed, bool(noop_with_empty_axes), keepdims)


for _name, _reduction in REDUCTIONS.items():
    _register(_name, _reduction)
