"""Operators that write values to the places that indices name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import moved
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator
from compiler.frontends.onnx_model.operators.indexing import within

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""torch's names by ONNX's."""


@operator("Scatter", "ScatterElements", since=9)
def scatter_elements(
    data: Tensor, indices: Value, updates: Tensor, *, axis: int = 0, reduction: str = "none", node: NodeContext
) -> Tensor:
    """Every update goes to its own place, but for the index along `axis`."""
    places = within(indices, data.shape[axis], node)
    return _scattered(data, axis, places, updates, reduction, node)


def _scattered(data: Tensor, axis: int, places: Tensor, updates: Tensor, reduction: str, node: NodeContext) -> Tensor:
    if reduction == "none":
        return moved(lambda one, other: one.scatter(axis, places, other), data, updates)
    if reduction not in REDUCTIONS:
        raise node.refuse(f"reduction {reduction!r}", f"The reductions are none, {', '.join(REDUCTIONS)}.")
    if reduction == "add":
        return moved(lambda one, other: one.scatter_add(axis, places, other), data, updates)
    how = REDUCTIONS[reduction]
    return moved(lambda one, other: one.scatter_reduce(axis, places, other, how), data, updates)


@operator("ScatterND", since=11)
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none", node: NodeContext) -> Tensor:
    """The last dim of `indices` names leading dims of `data`; updates are the slices that stand there."""
    places = indices.long().unbind(-1)
    if reduction in ("none", "add"):
        accumulate = reduction == "add"
        return moved(lambda one, other: one.index_put(places, other, accumulate=accumulate), data, updates)
    leading, rest = data.shape[: len(places)], data.shape[len(places) :]
    row = torch.zeros_like(places[0])
    for place, size in zip(places, leading, strict=True):
        row = row * size + place.remainder(size)
    width = math.prod(rest)
    rows = row.reshape(-1, 1).expand(-1, width)
    flat = data.reshape(math.prod(leading), width)
    return _scattered(flat, 0, rows, updates.reshape(-1, width), reduction, node).reshape(data.shape)


@operator("TensorScatter", since=24)
def tensor_scatter(
    past_cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
    node: NodeContext,
) -> Tensor:
    """Writes `update` [batch, .., tokens, ..] into a cache along `axis`, from every entry's own index on."""
    if mode not in ("linear", "circular"):
        raise node.refuse(f"mode {mode!r}", "The modes are linear and circular.")
    axis %= past_cache.dim()
    places = torch.arange(update.shape[axis]).reshape([-1 if dim == axis else 1 for dim in range(update.dim())])
    if write_indices is not None:
        places = places + write_indices.long().reshape([-1 if dim == 0 else 1 for dim in range(update.dim())])
    if mode == "circular":
        places = places.remainder(past_cache.shape[axis])
    return _scattered(past_cache, axis, places.expand(update.shape), update, "none", node)
