"""Determinants of square matrices."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.errors import CompilerError


@translates("aten.linalg_det.default")
def linalg_det(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return _det(w, x)


@translates("aten._linalg_det.default")
def linalg_det_with_factors(w: GraphWriter, node: fx.Node, x: fx.Node) -> tuple[ir.Value, ...]:
    """The factors, which only gradients need, have no counterpart in ONNX."""
    if any(user.args[1] != 0 for user in node.users):
        problem, hint = "the factors of a determinant are used", "Only the determinant itself can be written."
        raise CompilerError("lowering to ONNX", problem, hint, node.name)
    value = _det(w, x)
    return value, value, value


def _det(w: GraphWriter, x: fx.Node) -> ir.Value:
    dtype = result_type(x)
    value = w.emit("Det", w.tensor(x, torch.float32))
    return value if dtype == torch.float32 else w.cast(value, dtype)
