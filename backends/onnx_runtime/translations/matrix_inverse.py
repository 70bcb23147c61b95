"""The inverse of a matrix, for which ONNX Runtime has a kernel and ONNX no operator."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import shape_of


@translates("aten.linalg_inv_ex.default")
def inverse(w: GraphWriter, node: fx.Node, x: fx.Node, check_errors: bool) -> tuple[ir.Value, ir.Value]:
    """The inverse, and an error code for each matrix, which stays 0: the kernel gives none."""
    inverted = w.emit("Inverse", w.value(x), domain=MICROSOFT)
    sizes = w.sizes(shape_of(x)[:-2])
    no_errors = w.emit("Expand", w.tensor(0, torch.int32), sizes)
    return inverted, no_errors
