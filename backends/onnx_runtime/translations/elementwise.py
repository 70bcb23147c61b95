"""Elementwise operators, with torch's type promotion made explicit by casts."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.size_expressions import floor_division
from compiler.backends.onnx_runtime.translations import translates


def result_type(node: fx.Node) -> torch.dtype:
    """The dtype of what a node computes."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def promoted_type(left: Any, right: Any) -> torch.dtype:
    """The dtype in which torch compares or combines two arguments."""
    return torch.result_type(_plain(left), _plain(right))


def _plain(argument: Any) -> Any:
    """The tensor or number that stands behind an argument; a symbolic number as any of its kind."""
    held = argument.meta["val"] if isinstance(argument, fx.Node) else argument
    if isinstance(held, torch.SymInt):
        return 1
    return 1.0 if isinstance(held, torch.SymFloat) else held


def _float_operand(w: GraphWriter, node: fx.Node, x: Any) -> ir.Value:
    return w.tensor(x, result_type(node))


def _unary(op: str, *names: str) -> None:
    @translates(*names)
    def translate(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
        return w.emit(op, _float_operand(w, node, x))


for _op, _names in {
    "Abs": ("aten.abs.default",),
    "Ceil": ("aten.ceil.default",),
    "Cos": ("aten.cos.default",),
    "Erf": ("aten.erf.default",),
    "Exp": ("aten.exp.default",),
    "Floor": ("aten.floor.default",),
    "Log": ("aten.log.default",),
    "Neg": ("aten.neg.default",),
    "Reciprocal": ("aten.reciprocal.default",),
    "Relu": ("aten.relu.default",),
    "Round": ("aten.round.default",),
    "Sigmoid": ("aten.sigmoid.default",),
    "Sign": ("aten.sign.default",),
    "Sin": ("aten.sin.default",),
    "Sqrt": ("aten.sqrt.default",),
    "Tanh": ("aten.tanh.default",),
    "HardSwish": ("aten.hardswish.default",),
    "Mish": ("aten.mish.default",),
    "Not": ("aten.logical_not.default",),
}.items():
    _unary(_op, *_names)


@translates("aten.bitwise_not.default")
def bitwise_not(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return w.emit("Not" if result_type(node) == torch.bool else "BitwiseNot", w.value(x))


@translates("aten.rsqrt.default")
def rsqrt(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return w.emit("Reciprocal", w.emit("Sqrt", _float_operand(w, node, x)))


@translates("aten.silu.default")
def silu(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    operand = w.value(x)
    return w.emit("Mul", operand, w.emit("Sigmoid", operand))


@translates("aten.gelu.default")
def gelu(w: GraphWriter, node: fx.Node, x: fx.Node, approximate: str) -> ir.Value:
    return w.emit("Gelu", w.value(x), approximate=approximate if approximate != "none" else None)


@translates("aten.leaky_relu.default")
def leaky_relu(w: GraphWriter, node: fx.Node, x: fx.Node, slope: float) -> ir.Value:
    return w.emit("LeakyRelu", w.value(x), alpha=float(slope))


@translates("aten.elu.default")
def elu(w: GraphWriter, node: fx.Node, x: fx.Node, alpha: float, scale: float, input_scale: float) -> ir.Value:
    value = w.emit("Elu", w.emit("Mul", w.value(x), w.tensor(input_scale, result_type(node))), alpha=float(alpha))
    return w.emit("Mul", value, w.tensor(scale, result_type(node))) if scale != 1 else value


@translates("aten.hardsigmoid.default")
def hardsigmoid(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return w.emit("HardSigmoid", w.value(x), alpha=1.0 / 6.0, beta=0.5)


@translates("aten.softplus.default")
def softplus(w: GraphWriter, node: fx.Node, x: fx.Node, beta: float, threshold: float) -> ir.Value:
    dtype, operand = result_type(node), w.value(x)
    scaled = operand if beta == 1 else w.emit("Mul", operand, w.tensor(beta, dtype))
    soft = w.emit("Softplus", scaled)
    soft = soft if beta == 1 else w.emit("Div", soft, w.tensor(beta, dtype))
    return w.emit("Where", w.emit("Greater", scaled, w.tensor(threshold, dtype)), operand, soft)


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
    right = w.tensor(y, dtype)
    if alpha != 1:
        right = w.emit("Mul", right, w.tensor(alpha, dtype))
    return w.emit(boolean if dtype == torch.bool else op, w.tensor(x, dtype), right)


@translates("aten.mul.Tensor", "aten.mul.Scalar")
def mul(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = result_type(node)
    return w.emit("And" if dtype == torch.bool else "Mul", w.tensor(x, dtype), w.tensor(y, dtype))


@translates("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar")
def div(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = result_type(node)
    return w.emit("Div", w.tensor(x, dtype), w.tensor(y, dtype))


@translates("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(w: GraphWriter, node: fx.Node, x: Any, y: Any, rounding_mode: str | None) -> ir.Value:
    if rounding_mode == "floor":
        return floor_divide(w, node, x, y)
    dtype = result_type(node)
    quotient = w.emit("Div", w.tensor(x, dtype), w.tensor(y, dtype))
    if rounding_mode is None or not dtype.is_floating_point:
        return quotient
    return w.emit("Mul", w.emit("Sign", quotient), w.emit("Floor", w.emit("Abs", quotient)))


@translates("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = result_type(node)
    left, right = w.tensor(x, dtype), w.tensor(y, dtype)
    return w.emit("Floor", w.emit("Div", left, right)) if dtype.is_floating_point else floor_division(w, left, right)


@translates("aten.remainder.Tensor", "aten.remainder.Scalar")
def remainder(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = result_type(node)
    left, right = w.tensor(x, dtype), w.tensor(y, dtype)
    if not dtype.is_floating_point:
        value = w.emit("Mod", left, right)
    else:
        value = w.emit("Sub", left, w.emit("Mul", w.emit("Floor", w.emit("Div", left, right)), right))
    return value


@translates("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(w: GraphWriter, node: fx.Node, x: Any, exponent: Any) -> ir.Value:
    dtype = result_type(node)
    operand = w.tensor(x, dtype)
    if isinstance(exponent, (int, float)) and exponent == 2:
        value = w.emit("Mul", operand, operand)
    elif isinstance(exponent, (int, float)) and math.isclose(exponent, 0.5):
        value = w.emit("Sqrt", operand)
    else:
        value = w.emit("Pow", operand, w.tensor(exponent, dtype))
    return value


def _comparison(op: str, negate: bool, *names: str) -> None:
    @translates(*names)
    def translate(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
        dtype = promoted_type(x, y)
        if dtype == torch.bool and op != "Equal":
            dtype = torch.int32
        value = w.emit(op, w.tensor(x, dtype), w.tensor(y, dtype))
        return w.emit("Not", value) if negate else value


for _op, _negate, _name in [
    ("Equal", False, "eq"),
    ("Equal", True, "ne"),
    ("Greater", False, "gt"),
    ("GreaterOrEqual", False, "ge"),
    ("Less", False, "lt"),
    ("LessOrEqual", False, "le"),
]:
    _comparison(_op, _negate, f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")


def _logical(boolean: str, integer: str | None, *names: str) -> None:
    @translates(*names)
    def translate(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
        dtype = result_type(node)
        op = boolean if dtype == torch.bool or integer is None else integer
        return w.emit(op, w.tensor(x, dtype), w.tensor(y, dtype))


for _sign, _word in {"and": "And", "or": "Or", "xor": "Xor"}.items():
    _logical(
        _word,
        f"Bitwise{_word}",
        *(
            f"aten.{prefix}{_sign}{suffix}.{kind}"
            for prefix, suffix in (("__", "__"), ("bitwise_", ""))
            for kind in ("Tensor", "Scalar")
        ),
    )
    _logical(_word, None, f"aten.logical_{_sign}.default")


def _extreme(op: str, *names: str) -> None:
    @translates(*names)
    def translate(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
        dtype = result_type(node)
        return w.emit(op, w.tensor(x, dtype), w.tensor(y, dtype))


_extreme("Max", "aten.maximum.default", "aten.max.other")
_extreme("Min", "aten.minimum.default", "aten.min.other")


@translates("aten.clamp.default", "aten.clamp.Tensor")
def clamp(w: GraphWriter, node: fx.Node, x: fx.Node, minimum: Any, maximum: Any) -> ir.Value:
    dtype = result_type(node)
    value = w.tensor(x, dtype)
    if minimum is not None:
        value = w.emit("Max", value, w.tensor(minimum, dtype))
    return value if maximum is None else w.emit("Min", value, w.tensor(maximum, dtype))


@translates("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(w: GraphWriter, node: fx.Node, x: fx.Node, minimum: Any) -> ir.Value:
    return clamp(w, node, x, minimum, None)


@translates("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(w: GraphWriter, node: fx.Node, x: fx.Node, maximum: Any) -> ir.Value:
    return clamp(w, node, x, None, maximum)


@translates("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(w: GraphWriter, node: fx.Node, condition: fx.Node, x: Any, y: Any) -> ir.Value:
    dtype = result_type(node)
    return w.emit("Where", w.tensor(condition, torch.bool), w.tensor(x, dtype), w.tensor(y, dtype))


@translates("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(w: GraphWriter, node: fx.Node, x: fx.Node, mask: fx.Node, fill: Any) -> ir.Value:
    return where(w, node, mask, fill, x)


@translates(
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten.to.other",
    "aten._to_copy.default",
    "aten.type_as.default",
)
def to(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
    return w.tensor(x, result_type(node))


@translates(
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.dropout.default",
    "aten.lift_fresh_copy.default",
)
def same(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
    return w.value(x)


@translates("aten.isinf.default")
def isinf(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return w.emit("IsInf", w.value(x))


@translates("aten.isnan.default")
def isnan(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return w.emit("IsNaN", w.value(x))
