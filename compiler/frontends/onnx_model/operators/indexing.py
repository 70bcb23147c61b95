"""Operators that take values from the places that indices name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import moved, widened
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator


@operator("Gather")
def gather(data: Value, indices: Value, *, axis: int = 0, node: NodeContext) -> Tensor:
    """Slices of `data` along `axis`; the indices' dims stand in the place of that one.

    One known index selects; rows of a stored table are an embedding, whose indices must not be negative.
    """
    source = node.tensor(data)
    axis %= source.dim()
    if isinstance(indices, Known) and indices.shape == ():
        return source.select(axis, indices.sizes()[0])
    places = node.tensor(indices)
    is_table = isinstance(data, Known) and source.dim() == 2 and source.is_floating_point()
    if is_table and axis == 0 and not (isinstance(indices, Known) and _counts_from_the_end(indices)):
        return F.embedding(places, source)
    return _taken(source, axis, places)


def _counts_from_the_end(indices: Known) -> bool:
    """Whether known indices are negative, or may be."""
    return not indices.is_plain or any(item < 0 for item in indices.items())


def _taken(source: Tensor, axis: int, places: Tensor) -> Tensor:
    taken: Tensor = torch.ops.aten.index.Tensor(source, [*[None] * axis, places])
    return taken


@operator("GatherElements", since=11)
def gather_elements(data: Tensor, indices: Value, *, axis: int = 0, node: NodeContext) -> Tensor:
    places = within(indices, data.shape[axis], node)
    return moved(lambda one: one.gather(axis, places), data)


def within(indices: Value, size: Any, node: NodeContext) -> Tensor:
    """Indices as int64 from 0: those below 0 count from the end."""
    places = node.tensor(indices).long()
    if isinstance(indices, Known) and not _counts_from_the_end(indices):
        return places
    return places.remainder(size)


@operator("GatherND", since=11)
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The last dim of `indices` holds one index for each dim of `data` after the `batch_dims` leading ones."""
    places = list(indices.long().unbind(-1))
    rank = indices.dim() - 1
    leading = [
        torch.arange(indices.shape[dim]).reshape([-1 if other == dim else 1 for other in range(rank)])
        for dim in range(batch_dims)
    ]
    taken: Tensor = torch.ops.aten.index.Tensor(data, [*leading, *places])
    return taken


@operator("OneHot", since=9)
def one_hot(indices: Tensor, depth: Known, values: Value, *, axis: int = -1, node: NodeContext) -> Tensor:
    """`values` are the number elsewhere and the number at the index; an index out of range is nowhere."""
    count: Any = depth.sizes()[0]
    classes = torch.arange(count)
    places = indices.long()
    places = torch.where(places < 0, places + count, places)
    axis %= places.dim() + 1
    shape = [-1 if dim == axis else 1 for dim in range(places.dim() + 1)]
    off, on = node.tensor(values).unbind(0)
    return torch.where(places.unsqueeze(axis) == classes.reshape(shape), on, off)


@operator("NonZero", since=9)
def non_zero(x: Tensor) -> Tensor:
    """[rank, count]: the indices of what is not zero, in row-major order."""
    return torch.nonzero(widened(x)).transpose(0, 1)


@operator("Compress", since=9)
def compress(data: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices of `data` for which `condition` holds; it may be shorter than the dim."""
    places = torch.nonzero(condition).squeeze(1)
    return data.flatten().index_select(0, places) if axis is None else data.index_select(axis, places)


@operator("ReverseSequence", since=10)
def reverse_sequence(x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """Turns round the first `sequence_lens[i]` steps of every batch entry i."""
    time = torch.arange(x.shape[time_axis]).unsqueeze(1)  # [time, 1]
    lengths = sequence_lens.long().unsqueeze(0)  # [1, batch]
    places = torch.where(time < lengths, lengths - 1 - time, time)  # [time, batch]
    places = places if time_axis < batch_axis else places.transpose(0, 1)
    for dim in range(x.dim()):
        if dim not in (time_axis, batch_axis):
            places = places.unsqueeze(dim)
    return moved(lambda one: one.gather(time_axis, places.expand(x.shape)), x)
