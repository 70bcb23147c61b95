"""Functions of one tensor, number by number, in the dtype that torch gives the result."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.kernel_types import computed
from compiler.backends.onnx_runtime.translations import translates
from compiler.errors import CompilerError


def result_type(node: fx.Node) -> torch.dtype:
    """The dtype of what a node computes."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def require_first_alone(node: fx.Node, others: str) -> None:
    """Raises CompilerError where more is read than the first result of `node`; `others` says what there is besides."""
    if any(user.args[1] != 0 for user in node.users):
        raise CompilerError(
            "lowering to ONNX", f"{others} are used", "Only the result itself can be written.", node.name
        )


def _unary(op: str, name: str) -> None:
    @translates(name)
    def translate(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
        return computed(w, op, result_type(node), x)


for _op, _name in {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "HardSwish": "hardswish",
    "Log": "log",
    "Mish": "mish",
    "Neg": "neg",
    "Not": "logical_not",
    "Reciprocal": "reciprocal",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}.items():
    _unary(_op, f"aten.{_name}.default")


@translates("aten.bitwise_not.default")
def bitwise_not(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return w.emit("Not" if result_type(node) == torch.bool else "BitwiseNot", w.value(x))


@translates("aten.rsqrt.default")
def rsqrt(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    dtype = result_type(node)
    return computed(w, "Reciprocal", dtype, computed(w, "Sqrt", dtype, x))


@translates("aten.trunc.default")
def trunc(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return towards_zero(w, result_type(node), w.value(x))


def towards_zero(w: GraphWriter, dtype: torch.dtype, x: ir.Value) -> ir.Value:
    """Floats without their fractions."""
    down = computed(w, "Floor", dtype, computed(w, "Abs", dtype, x))
    return computed(w, "Mul", dtype, computed(w, "Sign", dtype, x), down)


@translates("aten.isinf.default")
def isinf(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return computed(w, "IsInf", result_type(x), x, result=torch.bool)


@translates("aten.isnan.default")
def isnan(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return computed(w, "IsNaN", result_type(x), x, result=torch.bool)
