"""Symbolic sizes: Python ints that depend on dynamic dims. In ONNX each is an int64[1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.size_expressions import floor_division
from compiler.backends.onnx_runtime.translations import translates


@translates("aten.sym_size.int")
def sym_size(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int) -> ir.Value:
    return w.dim_of(x, dim % x.meta["val"].dim())


def _integer_arithmetic(name: str, op: str) -> None:
    @translates(name)
    def translate(w: GraphWriter, node: fx.Node, left: Any, right: Any) -> ir.Value:
        if isinstance(node.meta["val"], torch.SymFloat):
            return w.expression(node.meta["val"])
        return w.emit(op, w.size(left), w.size(right))


for _name, _op in {
    "operator.add": "Add",
    "operator.sub": "Sub",
    "operator.mul": "Mul",
    "torch.sym_max": "Max",
    "torch.sym_min": "Min",
}.items():
    _integer_arithmetic(_name, _op)


@translates("operator.floordiv")
def floordiv(w: GraphWriter, node: fx.Node, left: Any, right: Any) -> ir.Value:
    return floor_division(w, w.size(left), w.size(right))


@translates("operator.mod")
def mod(w: GraphWriter, node: fx.Node, left: Any, right: Any) -> ir.Value:
    return w.emit("Mod", w.size(left), w.size(right))


@translates("operator.neg")
def neg(w: GraphWriter, node: fx.Node, x: Any) -> ir.Value:
    return w.emit("Mul", w.size(x), w.constant([-1], np.int64))


@translates(
    "torch.sym_float",
    "torch.sym_int",
    "torch._sym_sqrt",
    "operator.truediv",
    "operator.pow",
    "math.floor",
    "math.ceil",
    "math.trunc",
    "builtins.round",
)
def by_expression(w: GraphWriter, node: fx.Node, *rest: Any) -> ir.Value:
    """What goes through floats: float64[1], until it is rounded to a size again."""
    return w.expression(node.meta["val"])


@translates("operator.getitem")
def getitem(w: GraphWriter, node: fx.Node, source: fx.Node, index: int) -> ir.Value:
    return w.results(source)[index]
