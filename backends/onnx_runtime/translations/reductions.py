"""Sums, means, extremes, sorts and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.backends.onnx_runtime.translations.served_types import served_type


def _axes(w: GraphWriter, dims: Any) -> ir.Value | None:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return None
    return w.constant([dims] if isinstance(dims, int) else list(dims), np.int64)


def _reduction(op: str, *names: str) -> None:
    @translates(*names)
    def translate(
        w: GraphWriter, node: fx.Node, x: fx.Node, dims: Any = None, keepdim: Any = False, *rest: Any
    ) -> ir.Value:
        axes = _axes(w, dims if isinstance(dims, (int, list, tuple)) else None)
        return w.emit(op, w.tensor(x, result_type(node)), axes, keepdims=int(keepdim is True))


_reduction("ReduceSum", "aten.sum.dim_IntList", "aten.sum.default")
_reduction("ReduceMean", "aten.mean.dim", "aten.mean.default")
_reduction("ReduceMax", "aten.amax.default", "aten.max.default")
_reduction("ReduceMin", "aten.amin.default", "aten.min.default")
_reduction("ReduceProd", "aten.prod.dim_int", "aten.prod.default")
_reduction("ReduceLogSumExp", "aten.logsumexp.default")


@translates("aten.any.default", "aten.any.dim", "aten.any.dims")
def any_(w: GraphWriter, node: fx.Node, x: fx.Node, dims: Any = None, keepdim: bool = False) -> ir.Value:
    return _of_bools(w, "ReduceMax", x, dims, keepdim)


@translates("aten.all.default", "aten.all.dim", "aten.all.dims")
def all_(w: GraphWriter, node: fx.Node, x: fx.Node, dims: Any = None, keepdim: bool = False) -> ir.Value:
    return _of_bools(w, "ReduceMin", x, dims, keepdim)


def _of_bools(w: GraphWriter, op: str, x: fx.Node, dims: Any, keepdim: bool) -> ir.Value:
    as_int = w.cast(w.tensor(x, torch.bool), torch.int32)
    return w.cast(w.emit(op, as_int, _axes(w, dims), keepdims=int(keepdim)), torch.bool)


@translates("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")
def vector_norm(
    w: GraphWriter, node: fx.Node, x: fx.Node, order: Any, dims: Any, keepdim: bool, *rest: Any
) -> ir.Value:
    value, axes, keep = w.tensor(x, result_type(node)), _axes(w, dims), int(keepdim)
    if order in (1, 2, None):
        return w.emit("ReduceL1" if order == 1 else "ReduceL2", value, axes, keepdims=keep)
    absolute = w.emit("Abs", value)
    if order in (float("inf"), float("-inf")):
        return w.emit("ReduceMax" if order > 0 else "ReduceMin", absolute, axes, keepdims=keep)
    dtype = result_type(node)
    total = w.emit("ReduceSum", w.emit("Pow", absolute, w.tensor(order, dtype)), axes, keepdims=keep)
    return w.emit("Pow", total, w.tensor(1.0 / order, dtype))


@translates("aten.var.correction")
def variance(w: GraphWriter, node: fx.Node, x: fx.Node, dims: Any, correction: Any, keepdim: bool) -> ir.Value:
    """mean((x - mean)^2) scaled from the count to the count less the correction."""
    dtype, value, axes = result_type(node), w.value(x), _axes(w, dims)
    centred = w.emit("Sub", value, w.emit("ReduceMean", value, axes, keepdims=1))
    spread = w.emit("ReduceMean", w.emit("Mul", centred, centred), axes, keepdims=int(keepdim))
    removed = 1 if correction is None else correction
    if removed == 0:
        return spread
    rank = x.meta["val"].dim()
    reduced = range(rank) if not dims else ([dims] if isinstance(dims, int) else dims)
    count = w.cast(
        w.emit("ReduceProd", w.emit("Concat", *(w.dim_of(x, d % rank) for d in reduced), axis=0), keepdims=0), dtype
    )
    return w.emit("Mul", spread, w.emit("Div", count, w.emit("Sub", count, w.tensor(removed, dtype))))


@translates("aten.softmax.int", "aten._softmax.default")
def softmax(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, *rest: Any) -> ir.Value:
    return w.emit("Softmax", w.tensor(x, result_type(node)), axis=dim)


@translates("aten.log_softmax.int", "aten._log_softmax.default")
def log_softmax(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, *rest: Any) -> ir.Value:
    return w.emit("LogSoftmax", w.tensor(x, result_type(node)), axis=dim)


ARGUMENT_TYPES = (torch.float32, torch.float64, torch.float16, torch.int32, torch.int64, torch.int8, torch.uint8)
"""What ONNX Runtime has kernels for."""


def _argument(op: str, name: str) -> None:
    @translates(name)
    def translate(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int | None, keepdim: bool) -> ir.Value:
        operand = w.tensor(x, served_type(result_type(x), ARGUMENT_TYPES))
        if dim is None:
            operand, dim = w.emit("Reshape", operand, w.constant([-1], np.int64)), 0
        return w.emit(op, operand, axis=dim, keepdims=int(keepdim))


_argument("ArgMax", "aten.argmax.default")
_argument("ArgMin", "aten.argmin.default")


def _extreme_with_place(op: str, place: str, name: str) -> None:
    @translates(name)
    def translate(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, keepdim: bool) -> tuple[ir.Value, ir.Value]:
        value, keep = w.value(x), int(keepdim)
        return (
            w.emit(op, value, w.constant([dim], np.int64), keepdims=keep),
            w.emit(place, value, axis=dim, keepdims=keep),
        )


_extreme_with_place("ReduceMax", "ArgMax", "aten.max.dim")
_extreme_with_place("ReduceMin", "ArgMin", "aten.min.dim")


@translates("aten.topk.default")
def topk(
    w: GraphWriter, node: fx.Node, x: fx.Node, count: Any, dim: int, largest: bool, sort: bool
) -> Sequence[ir.Value]:
    return w.emit_several(
        "TopK", w.value(x), w.size(count), outputs=2, axis=dim, largest=int(largest), sorted=int(sort)
    )


@translates("aten.sort.default")
def sort(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, descending: bool) -> Sequence[ir.Value]:
    return _sorted(w, x, dim, descending)


@translates("aten.sort.stable")
def sort_stable(
    w: GraphWriter, node: fx.Node, x: fx.Node, stable: Any, dim: int, descending: bool
) -> Sequence[ir.Value]:
    return _sorted(w, x, dim, descending)


@translates("aten.argsort.default")
def argsort(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, descending: bool) -> ir.Value:
    return _sorted(w, x, dim, descending)[1]


def _sorted(w: GraphWriter, x: fx.Node, dim: int, descending: bool) -> tuple[ir.Value, ...]:
    """TopK of everything; among equal values ONNX takes the lower index first, so the sort is stable."""
    count = w.dim_of(x, dim % x.meta["val"].dim())
    return w.emit_several("TopK", w.value(x), count, outputs=2, axis=dim, largest=int(descending))
