"""Arithmetic on two or more operands that broadcast together."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Operand, Value, operator
from compiler.frontends.onnx_model.operators.unsigned_integers import divided, in_int64, in_unsigned_order


def aligned(left: Operand, right: Operand, axis: int | None) -> Operand:
    """The right operand with dims of size 1 behind its own, as the `axis` of opset versions before 7 asks for."""
    if axis is None or not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return right
    behind = left.dim() - (axis if axis >= 0 else axis + left.dim()) - right.dim()
    return right.reshape(*right.shape, *[1] * behind)


@operator("Add")
@in_int64
def add(a: Operand, b: Operand, *, axis: int | None = None) -> Operand:
    return a + aligned(a, b, axis)


@operator("Sub")
@in_int64
def sub(a: Operand, b: Operand, *, axis: int | None = None) -> Operand:
    return a - aligned(a, b, axis)


@operator("Mul")
@in_int64
def mul(a: Operand, b: Operand, *, axis: int | None = None) -> Operand:
    return a * aligned(a, b, axis)


@operator("Div")
def div(a: Operand, b: Operand, *, axis: int | None = None) -> Tensor:
    """Quotients of integers are cut towards zero."""
    b = aligned(a, b, axis)
    if not isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        if b.is_floating_point() and a == 1:
            return torch.reciprocal(b)
        a = torch.full((), a, dtype=b.dtype)
    if a.dtype == torch.uint64:
        return divided(a, torch.as_tensor(b, dtype=a.dtype)).to(a.dtype)
    return torch.div(a, b) if a.is_floating_point() else _quotient(a, b)


@in_int64
def _quotient(a: Tensor, b: Operand) -> Tensor:
    return torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder has the sign of the divisor, or with `fmod` that of the dividend."""
    if a.dtype == torch.uint64:
        return (a.long() - divided(a, b) * b.long()).to(a.dtype)
    return _remainder(a, b, bool(fmod))


@in_int64
def _remainder(a: Tensor, b: Tensor, signed_like_dividend: bool) -> Tensor:
    return torch.fmod(a, b) if signed_like_dividend else torch.remainder(a, b)


@operator("Pow")
def power(x: Operand, y: Value, *, axis: int | None = None, node: NodeContext) -> Tensor:
    """The result has the dtype of the base, whatever the exponent's is."""
    exponent = _number(x, y)
    if exponent is not None:
        return torch.pow(x, exponent)  # type: ignore[arg-type, unused-ignore]
    raised = aligned(x, node.tensor(y), axis)
    assert isinstance(raised, Tensor)
    base = x if isinstance(x, Tensor) else torch.full((), x, dtype=raised.dtype)
    if raised.is_floating_point() and not base.is_floating_point():
        return torch.pow(base.double(), raised.double()).to(base.dtype)
    return torch.pow(base, raised.to(base.dtype))


def _number(x: Operand, y: Value) -> int | float | None:
    """The exponent as a Python number, where there is one that does not change the result's shape or dtype."""
    if not isinstance(x, Tensor) or not isinstance(y, Known) or y.size != 1 or not y.is_plain:
        return None
    exponent: int | float = y.item()
    if len(y.shape) > x.dim() or (not x.is_floating_point() and (isinstance(exponent, float) or exponent < 0)):
        return None
    return exponent


@operator("Max")
def maximum(*inputs: Operand) -> Operand:
    return functools.reduce(_greater, inputs)


@operator("Min")
def minimum(*inputs: Operand) -> Operand:
    return functools.reduce(_lesser, inputs)


@in_unsigned_order
def _greater(a: Operand, b: Operand) -> Operand:
    tensor, other = (a, b) if isinstance(a, Tensor) else (b, a)
    if not isinstance(tensor, Tensor):
        return max(a, b)
    return torch.maximum(tensor, other) if isinstance(other, Tensor) else torch.clamp(tensor, min=other)


@in_unsigned_order
def _lesser(a: Operand, b: Operand) -> Operand:
    tensor, other = (a, b) if isinstance(a, Tensor) else (b, a)
    if not isinstance(tensor, Tensor):
        return min(a, b)
    return torch.minimum(tensor, other) if isinstance(other, Tensor) else torch.clamp(tensor, max=other)


@operator("Sum")
def sum_(*inputs: Operand) -> Operand:
    return functools.reduce(lambda left, right: left + right, inputs)


@operator("Mean")
def mean(*inputs: Operand) -> Operand:
    return sum_(*inputs) / len(inputs)


@operator("Clip")
def clip_to_attributes(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:
    return x if min is None and max is None else torch.clamp(x, min, max)


@operator("Clip", since=11)
def clip(x: Tensor, min: Operand | None = None, max: Operand | None = None) -> Operand:
    """Where the bounds cross, the upper one holds."""
    if not isinstance(min, Tensor) and not isinstance(max, Tensor):
        return in_int64(clip_to_attributes)(x, min=min, max=max)
    above: Operand = x if min is None else _greater(x, min)
    return above if max is None else _lesser(above, max)
