"""Comparison, logic on truth values, and the choice between two tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Operand, Value, operator
from compiler.frontends.onnx_model.operators.arithmetic import aligned
from compiler.frontends.onnx_model.operators.unsigned_integers import in_unsigned_order


@operator("Equal")
def equal(a: Operand, b: Operand, *, axis: int | None = None) -> Operand:
    return a == aligned(a, b, axis)


@operator("Less")
@in_unsigned_order
def less(a: Operand, b: Operand, *, axis: int | None = None) -> Operand:
    return a < aligned(a, b, axis)


@operator("LessOrEqual")
@in_unsigned_order
def less_or_equal(a: Operand, b: Operand) -> Operand:
    return a <= b


@operator("Greater")
@in_unsigned_order
def greater(a: Operand, b: Operand, *, axis: int | None = None) -> Operand:
    return a > aligned(a, b, axis)


@operator("GreaterOrEqual")
@in_unsigned_order
def greater_or_equal(a: Operand, b: Operand) -> Operand:
    return a >= b


@operator("And")
def and_(a: Tensor, b: Tensor, *, axis: int | None = None) -> Tensor:
    return torch.logical_and(a, aligned(a, b, axis))  # type: ignore[arg-type, unused-ignore]


@operator("Or")
def or_(a: Tensor, b: Tensor, *, axis: int | None = None) -> Tensor:
    return torch.logical_or(a, aligned(a, b, axis))  # type: ignore[arg-type, unused-ignore]


@operator("Xor")
def xor(a: Tensor, b: Tensor, *, axis: int | None = None) -> Tensor:
    return torch.logical_xor(a, aligned(a, b, axis))  # type: ignore[arg-type, unused-ignore]


@operator("Not")
def not_(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@operator("IsNaN")
def is_nan(x: Tensor) -> Tensor:
    return torch.isnan(_computable(x))


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    x = _computable(x)
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return x == float("inf")
    return x == float("-inf") if detect_negative else torch.zeros_like(x, dtype=torch.bool)


def _computable(x: Tensor) -> Tensor:
    return x.float() if x.element_size() == 1 else x


@operator("Where")
def where(condition: Tensor, x: Value, y: Value, *, node: NodeContext) -> Tensor:
    """A single known number stays one: `where(mask, -inf, scores)` is what attention masks look like."""
    left, right = _number_beside(x, y), _number_beside(y, x)
    return torch.where(
        condition,
        node.tensor(x) if left is None else left,
        node.tensor(y) if right is None else right,
    )


def _number_beside(value: Value, other: Value) -> int | float | bool | None:
    """The number that `value` is, where the tensor beside it gives the result its dtype and at least its rank."""
    if not isinstance(value, Known) or value.size != 1 or not value.is_plain:
        return None
    if not isinstance(other, Tensor) or other.dtype != value.dtype or other.dim() < max(1, len(value.shape)):
        return None
    number: int | float | bool = value.item()
    return number
