"""Arithmetic on dynamic dims, such as 2*batch*sequence, as ONNX nodes on int64[1]."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx_ir import DataType

from compiler.errors import CompilerError

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.backends.onnx_runtime.graph_writer import GraphWriter

FOLDED = {"Add": "Add", "Mul": "Mul", "Max": "Max", "Min": "Min"}
FLOATING = {"ToFloat": "", "FloatTrueDiv": "Div", "IntTrueDiv": "Div", "FloatPow": "Pow", "OpaqueUnaryFn_sqrt": "Sqrt"}
"""Arithmetic that gives floats, and the ONNX operators of the same meaning."""
ROUNDED = {"FloorToInt": "Floor", "CeilToInt": "Ceil", "RoundToInt": "Round", "TruncToInt": ""}
"""From floats back to sizes, as exporters write scaled ones: floor(1.5 * height)."""


def size_value(w: GraphWriter, expression: Any, source: Callable[[str], ir.Value | None]) -> ir.Value:
    """The value of a sympy `expression`, int64[1] or float64[1]; `source` gives that of a symbol.

    Raises CompilerError for other arithmetic.
    """
    kind = type(expression).__name__
    if expression.is_Integer:
        return w.constant([int(expression)], np.int64)
    if expression.is_Float:
        return w.constant([float(expression)], np.float64)
    if (known := source(str(expression))) is not None:
        return known

    def make() -> ir.Value:
        parts = [size_value(w, one, source) for one in expression.args]
        if _is_float(expression):
            parts = [
                part if _is_float(one) else w.emit("Cast", part, to=int(DataType.DOUBLE))
                for part, one in zip(parts, expression.args, strict=True)
            ]
        if kind in FOLDED:
            made: ir.Value = reduce(lambda left, right: w.emit(FOLDED[kind], left, right), parts)
            return made
        if kind in ("FloorDiv", "CleanDiv"):
            return floor_division(w, *parts)
        if kind in ("Mod", "PythonMod"):
            return w.emit("Mod", *parts)
        if kind in ("Pow", "PowByNatural"):
            return w.emit("Pow", *parts)
        if kind in FLOATING:
            return w.emit(FLOATING[kind], *parts) if FLOATING[kind] else parts[0]
        if kind in ROUNDED:
            rounded = w.emit(ROUNDED[kind], *parts) if ROUNDED[kind] else parts[0]
            return w.emit("Cast", rounded, to=int(DataType.INT64))
        problem = f"size {expression} is no arithmetic on the sizes of the inputs"
        raise CompilerError("lowering to ONNX", problem, "Make the sizes that values decide fixed.")

    return w.shared(("size", str(expression)), make)


def _is_float(expression: Any) -> bool:
    kind = type(expression).__name__
    if expression.is_Float or kind in FLOATING:
        return True
    return (kind in FOLDED or kind == "Pow") and any(map(_is_float, expression.args))


def floor_division(w: GraphWriter, left: ir.Value, right: ir.Value) -> ir.Value:
    """Rounds down, as Python does: ONNX's integer Div rounds towards zero, and its Mod takes the divisor's sign."""
    return w.emit("Div", w.emit("Sub", left, w.emit("Mod", left, right)), right)
