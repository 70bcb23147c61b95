"""Arithmetic, comparison and rounding of numbers that are known while reading, symbolic sizes among them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from compiler.frontends.onnx_model.known import Known, is_symbolic
from compiler.frontends.onnx_model.operator_table import known_operator
from compiler.frontends.onnx_model.operators.known_numbers import each

EXACT = (torch.int64, torch.int32, torch.float32, torch.float64, torch.bool)


def calculated(function: Callable[..., Any], *operands: Known, dtype: torch.dtype | None = None) -> Any:
    """`function` of the items of Knowns that are broadcast together; of `dtype`, or that of the first one."""
    if any(one.dtype not in EXACT for one in operands):
        return NotImplemented
    result = dtype or operands[0].dtype
    items = each(function, *(one.objects() for one in operands))
    return Known(each(_to_float32, items) if result == torch.float32 else items, result)


def _to_float32(item: Any) -> Any:
    """ONNX rounds after every operator: 10 * 0.7 is 7 in float32, and 6.99999988 where float32's 0.7 is not rounded."""
    return item if is_symbolic(item) else float(np.float32(item))


def _divide(left: Any, right: Any) -> Any:
    """ONNX's Div: integers are cut towards zero. Symbolic sizes are never negative."""
    if isinstance(left, torch.SymFloat) or isinstance(right, torch.SymFloat):
        return left / right
    if isinstance(left, float):
        with np.errstate(all="ignore"):
            return float(np.divide(left, right))
    if is_symbolic(left) or is_symbolic(right):
        return left // right
    return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)


def _larger(left: Any, right: Any) -> Any:
    return torch.sym_max(left, right)  # type: ignore[no-untyped-call]


def _smaller(left: Any, right: Any) -> Any:
    return torch.sym_min(left, right)  # type: ignore[no-untyped-call]


def _decided(comparison: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A bool where every size the model allows gives the same answer: exporters ask whether sizes are -1."""

    def decide(left: Any, right: Any) -> Any:
        truth = comparison(left, right)
        if not isinstance(truth, torch.SymBool):
            return truth
        if statically_known_true(truth):
            return True
        return False if statically_known_true(torch.sym_not(truth)) else truth  # type: ignore[no-untyped-call]

    return decide


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda left, right: left + right,
    "Sub": lambda left, right: left - right,
    "Mul": lambda left, right: left * right,
    "Div": _divide,
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": lambda left, right: left == right,
    "Less": lambda left, right: left < right,
    "LessOrEqual": lambda left, right: left <= right,
    "Greater": lambda left, right: left > right,
    "GreaterOrEqual": lambda left, right: left >= right,
}
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "Neg": lambda item: -item,
    "Abs": abs,
    "Sqrt": lambda item: torch.sym_sqrt(item) if is_symbolic(item) or item >= 0 else math.nan,
    "Reciprocal": lambda item: _divide(1.0, item),
}
ROUNDINGS: dict[str, Callable[[Any], Any]] = {"Floor": math.floor, "Ceil": math.ceil, "Round": round}


def _register() -> None:
    for name, two in ARITHMETIC.items():
        known_operator(name)(_of_two(two))
    for name, two in COMPARISONS.items():
        known_operator(name)(_of_two(_decided(two), torch.bool))
    for name, one in FUNCTIONS.items():
        known_operator(name)(_of_one(one))
    for name, one in ROUNDINGS.items():
        known_operator(name)(_of_one(_rounded(one)))
    for name, two in {"Max": _larger, "Min": _smaller, "Sum": ARITHMETIC["Add"]}.items():
        known_operator(name)(_of_many(two))


def _of_one(function: Callable[[Any], Any]) -> Callable[[Known], Any]:
    return lambda x: calculated(function, x)


def _of_two(function: Callable[[Any, Any], Any], dtype: torch.dtype | None = None) -> Callable[[Known, Known], Any]:
    return lambda left, right: calculated(function, left, right, dtype=dtype)


def _of_many(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def compute(*inputs: Known) -> Any:
        return calculated(lambda *items: functools.reduce(function, items), *inputs)

    return compute


def _rounded(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A rounding that gives a float, as ONNX's do."""

    def round_item(item: Any) -> Any:
        if is_symbolic(item):
            return torch.sym_float(function(item))  # type: ignore[no-untyped-call]
        return float(function(item)) if math.isfinite(item) else item

    return round_item


@known_operator("Mod")
def mod(left: Known, right: Known, *, fmod: int = 0) -> Any:
    """With `fmod` the remainder has the dividend's sign."""
    if not right.is_plain or 0 in right.items() or (fmod and not left.is_plain):
        return NotImplemented
    return calculated(_dividend_signed if fmod else lambda x, y: x % y, left, right)


def _dividend_signed(left: Any, right: Any) -> Any:
    remainder = math.fmod(left, right)
    return remainder if isinstance(left, float) else int(remainder)


@known_operator("Pow")
def power(base: Known, exponent: Known) -> Any:
    if exponent.dtype not in EXACT or not exponent.is_plain or any(item < 0 for item in exponent.items()):
        return NotImplemented
    if not base.dtype.is_floating_point and exponent.dtype.is_floating_point:
        return NotImplemented
    if any(not is_symbolic(item) and item < 0 for item in base.items()) and exponent.dtype.is_floating_point:
        return NotImplemented
    return calculated(lambda x, y: x**y, base, exponent)


@known_operator("Clip")
def clip(x: Known, low: Known | None = None, high: Known | None = None) -> Any:
    """The bounds that versions before 11 have as attributes are left to the operator on tensors."""
    if low is None and high is None:
        return NotImplemented
    raised = x if low is None else calculated(_larger, x, low)
    return raised if high is None or raised is NotImplemented else calculated(_smaller, raised, high)


_register()
