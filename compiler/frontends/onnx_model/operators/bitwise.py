"""Operators on the bits of integers."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.unsigned_integers import in_int64


@operator("BitwiseAnd")
@in_int64
def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_and(a, b)


@operator("BitwiseOr")
@in_int64
def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_or(a, b)


@operator("BitwiseXor")
@in_int64
def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_xor(a, b)


@operator("BitwiseNot")
@in_int64
def bitwise_not(x: Tensor) -> Tensor:
    return torch.bitwise_not(x)


@operator("BitShift")
def bit_shift(x: Tensor, y: Tensor, *, direction: str, node: NodeContext) -> Tensor:
    """Shifts by a negative number or by the width or more leave 0, or -1 of a negative number that goes right."""
    if direction not in ("LEFT", "RIGHT"):
        raise node.refuse(f"its direction is {direction!r}", "It is LEFT or RIGHT.")
    width = 8 * x.element_size()
    wide, count = x.long(), y.long()
    inside = (count >= 0) & (count < width)
    count = torch.where(inside, count, 0)
    if direction == "LEFT":
        return torch.where(inside, wide << count, 0).to(x.dtype)
    if x.dtype == torch.uint64:
        halved = (wide >> 1) & (2**63 - 1)
        shifted = torch.where(count == 0, wide, halved >> (count - 1).clamp(min=0))
        return torch.where(inside, shifted, 0).to(x.dtype)
    return torch.where(inside, wide >> count, torch.where(wide < 0, -1, 0)).to(x.dtype)
