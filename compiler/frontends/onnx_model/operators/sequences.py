"""Sequences of tensors, which are Python lists while a model is read: their lengths and positions are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator


@operator("SequenceEmpty")
def sequence_empty() -> list[Any]:
    return []


@operator("SequenceConstruct")
def sequence_construct(*inputs: Value) -> list[Any]:
    return list(inputs)


@operator("SequenceLength")
def sequence_length(sequence: Value) -> Known:
    return Known.of(len(sequence))


@operator("SequenceAt")
def sequence_at(sequence: Value, position: Known, *, node: NodeContext) -> Any:
    return sequence[_index(sequence, position, node)]


@operator("SequenceErase")
def sequence_erase(sequence: Value, position: Known | None = None, *, node: NodeContext) -> list[Any]:
    index = len(sequence) - 1 if position is None else _index(sequence, position, node)
    return [item for place, item in enumerate(sequence) if place != index]


@operator("SequenceInsert")
def sequence_insert(sequence: Value, tensor: Value, position: Known | None = None, *, node: NodeContext) -> list[Any]:
    index = len(sequence) if position is None else int(position.item())
    if not -len(sequence) <= index <= len(sequence):
        raise node.refuse(f"position {index} in a sequence of {len(sequence)}", "Positions lie inside the sequence.")
    index += len(sequence) if index < 0 else 0
    return [*sequence[:index], tensor, *sequence[index:]]


def _index(sequence: list[Any], position: Known, node: NodeContext) -> int:
    index = int(position.item())
    if not -len(sequence) <= index < len(sequence):
        raise node.refuse(f"position {index} in a sequence of {len(sequence)}", "Positions lie inside the sequence.")
    return index % len(sequence)


@operator("SplitToSequence")
def split_to_sequence(
    x: Tensor, split: Known | None = None, *, axis: int = 0, keepdims: int = 1, node: NodeContext
) -> list[Tensor]:
    """Parts of one along `axis`, without that dim where `keepdims` is 0; or of the sizes that `split` gives."""
    if split is None:
        parts = list(torch.split(x, 1, axis))
        return parts if keepdims else [part.squeeze(axis) for part in parts]
    if split.shape == ():
        return list(torch.split(x, int(split.item()), axis))
    return list(torch.split(x, [int(size) for size in split.sizes()], axis))


@operator("ConcatFromSequence")
def concat_from_sequence(sequence: Value, *, axis: int, new_axis: int = 0, node: NodeContext) -> Tensor:
    tensors = [node.tensor(item) for item in sequence]
    return torch.stack(tensors, axis) if new_axis else torch.cat(tensors, axis)
