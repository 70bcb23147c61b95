"""Comparisons, logic, bits and choices, with torch's type promotion made explicit by casts."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.kernel_types import computed, kernel_type
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type


def promoted_type(left: Any, right: Any) -> torch.dtype:
    """The dtype in which torch compares or combines two arguments."""
    return torch.result_type(_plain(left), _plain(right))


def _plain(argument: Any) -> Any:
    """The tensor or number that stands behind an argument; a symbolic number as any of its kind."""
    held = argument.meta["val"] if isinstance(argument, fx.Node) else argument
    if isinstance(held, torch.SymInt):
        return 1
    return 1.0 if isinstance(held, torch.SymFloat) else held


def _comparison(op: str, negate: bool, *names: str) -> None:
    @translates(*names)
    def translate(w: GraphWriter, node: fx.Node, x: Any, y: Any) -> ir.Value:
        dtype = promoted_type(x, y)
        if dtype == torch.bool and op != "Equal":
            dtype = torch.int32
        value = computed(w, op, dtype, x, y, result=torch.bool)
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


def chosen(w: GraphWriter, dtype: torch.dtype, condition: ir.Value, x: Any, y: Any) -> ir.Value:
    """`x` where the condition holds and `y` elsewhere, nodes or numbers, as `dtype`."""
    kernel = kernel_type("Where", dtype)
    made = w.emit("Where", condition, w.tensor(x, kernel), w.tensor(y, kernel))
    return made if kernel == dtype else w.cast(made, dtype)


@translates("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(w: GraphWriter, node: fx.Node, condition: fx.Node, x: Any, y: Any) -> ir.Value:
    return chosen(w, result_type(node), w.tensor(condition, torch.bool), x, y)


@translates("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(w: GraphWriter, node: fx.Node, x: fx.Node, mask: fx.Node, fill: Any) -> ir.Value:
    return where(w, node, mask, fill, x)


@translates(
    "aten.__lshift__.Tensor",
    "aten.__lshift__.Scalar",
    "aten.bitwise_left_shift.Tensor",
    "aten.bitwise_left_shift.Tensor_Scalar",
)
def left_shift(w: GraphWriter, node: fx.Node, x: Any, count: Any) -> ir.Value:
    """Signed numbers are shifted as the unsigned ones with the same bits: there are no other kernels."""
    return w.cast(_shifted(w, "LEFT", w.tensor(x, torch.uint64), count), result_type(node))


@translates(
    "aten.__rshift__.Tensor",
    "aten.__rshift__.Scalar",
    "aten.bitwise_right_shift.Tensor",
    "aten.bitwise_right_shift.Tensor_Scalar",
)
def right_shift(w: GraphWriter, node: fx.Node, x: Any, count: Any) -> ir.Value:
    """A negative number goes right as its complement does: x >> n is ~(~x >> n), so that ones come in from the left."""
    wide = w.tensor(x, torch.int64)
    zero, ones = w.tensor(0, torch.int64), w.tensor(-1, torch.int64)
    flip = w.emit("Where", w.emit("Less", wide, zero), ones, zero)
    shifted = _shifted(w, "RIGHT", w.cast(w.emit("BitwiseXor", wide, flip), torch.uint64), count)
    restored = w.emit("BitwiseXor", w.cast(shifted, torch.int64), flip)
    return w.cast(restored, result_type(node))


def _shifted(w: GraphWriter, direction: str, x: ir.Value, count: Any) -> ir.Value:
    return w.emit("BitShift", x, w.tensor(count, torch.uint64), direction=direction)
