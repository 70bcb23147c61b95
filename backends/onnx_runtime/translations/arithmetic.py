"""Arithmetic on two operands, with torch's type promotion made explicit by casts."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.kernel_types import computed
from compiler.backends.onnx_runtime.size_expressions import floor_division
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type, towards_zero


@translates("aten.add.Tensor", "aten.add.Scalar")
def add(w: GraphWriter, node: fx.Node, x: Any, y: Any, alpha: Any) -> ir.Value:
    return _added(w, node, "Add", "Or", x, y, alpha)


@translates("aten.sub.Tensor", "aten.sub.Scalar")
def sub(w: GraphWriter, node: fx.Node, x: Any, y: Any, alpha: Any) -> ir.Value:
    return _added(w, node, "Sub", "Xor", x, y, alpha)


@translates("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(w: GraphWriter, node: fx.Node, x: Any, y: Any, alpha: Any) -> ir.Value:
    return _added(w, node, "Sub", "Xor", y, x, alpha)


def _added(w: GraphWriter, node: fx.Node, op: str, boolean: str, x: Any, y: Any, alpha: Any) -> ir.Value:
    dtype = result_type(node)
    right = y if alpha == 1 else computed(w, "Mul", dtype, y, alpha)
    return computed(w, boolean if dtype == torch.bool else op, dtype, x, right)


@translates("aten.mul.Tensor", "aten.mul.Scalar")
def mul(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = result_type(node)
    return computed(w, "And" if dtype == torch.bool else "Mul", dtype, x, y)


@translates("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar")
def div(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    return computed(w, "Div", result_type(node), x, y)


@translates("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(w: GraphWriter, node: fx.Node, x: Any, y: Any, rounding_mode: str | None) -> ir.Value:
    if rounding_mode == "floor":
        return floor_divide(w, node, x, y)
    dtype = result_type(node)
    quotient = computed(w, "Div", dtype, x, y)
    return quotient if rounding_mode is None or not dtype.is_floating_point else towards_zero(w, dtype, quotient)


@translates("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = result_type(node)
    if dtype.is_floating_point:
        return computed(w, "Floor", dtype, computed(w, "Div", dtype, x, y))
    return floor_division(w, w.tensor(x, dtype), w.tensor(y, dtype))


@translates("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    return computed(w, "Mod", result_type(node), x, y, fmod=1)


@translates("aten.remainder.Tensor", "aten.remainder.Scalar")
def remainder(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    """Of floats: the remainder with the dividend's sign, moved by one divisor where the signs differ."""
    dtype = result_type(node)
    if not dtype.is_floating_point:
        return computed(w, "Mod", dtype, x, y)
    left = computed(w, "Mod", dtype, x, y, fmod=1)
    signs = computed(w, "Mul", dtype, computed(w, "Sign", dtype, left), computed(w, "Sign", dtype, y))
    differ = computed(w, "Less", dtype, signs, 0, result=torch.bool)
    return w.emit("Where", differ, computed(w, "Add", dtype, left, y), left)


@translates("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(w: GraphWriter, node: fx.Node, x: Any, exponent: Any) -> ir.Value:
    dtype = result_type(node)
    if isinstance(exponent, (int, float)) and exponent == 2:
        return computed(w, "Mul", dtype, x, x)
    if isinstance(exponent, (int, float)) and math.isclose(exponent, 0.5):
        return computed(w, "Sqrt", dtype, x)
    return computed(w, "Pow", dtype, x, exponent)


def _extreme(op: str, *names: str) -> None:
    @translates(*names)
    def translate(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
        return computed(w, op, result_type(node), x, y)


_extreme("Max", "aten.maximum.default", "aten.max.other")
_extreme("Min", "aten.minimum.default", "aten.min.other")


@translates("aten.clamp.default", "aten.clamp.Tensor")
def clamp(w: GraphWriter, node: fx.Node, x: fx.Node, minimum: Any, maximum: Any) -> ir.Value:
    dtype = result_type(node)
    value = w.tensor(x, dtype)
    if dtype == torch.float32 and all(isinstance(one, (int, float)) for one in (minimum, maximum)):
        return w.emit("Clip", value, w.tensor(minimum, dtype), w.tensor(maximum, dtype))
    if minimum is not None:
        value = computed(w, "Max", dtype, value, minimum)
    return value if maximum is None else computed(w, "Min", dtype, value, maximum)


@translates("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(w: GraphWriter, node: fx.Node, x: fx.Node, minimum: Any) -> ir.Value:
    return clamp(w, node, x, minimum, None)


@translates("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(w: GraphWriter, node: fx.Node, x: fx.Node, maximum: Any) -> ir.Value:
    return clamp(w, node, x, None, maximum)
