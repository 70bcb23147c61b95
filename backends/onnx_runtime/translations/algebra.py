"""Products over named dims, and determinants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import require_first_alone, result_type
from compiler.backends.onnx_runtime.translations.served_types import in_served_type

EINSUM_TYPES = (torch.float32, torch.float64, torch.int32, torch.int64)
"""What ONNX Runtime has kernels for."""


@translates("aten.einsum.default")
def einsum(w: GraphWriter, node: fx.Node, equation: str, tensors: Sequence[fx.Node], *rest: Any) -> ir.Value:
    def emit(computed: torch.dtype) -> ir.Value:
        return w.emit("Einsum", *(w.tensor(one, computed) for one in tensors), equation=equation)

    return in_served_type(w, result_type(node), EINSUM_TYPES, emit)


@translates("aten.linalg_det.default")
def linalg_det(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return _det(w, x)


@translates("aten._linalg_det.default")
def linalg_det_with_factors(w: GraphWriter, node: fx.Node, x: fx.Node) -> tuple[ir.Value, ...]:
    """The factors, which only gradients need, have no counterpart in ONNX."""
    require_first_alone(node, "the factors of a determinant")
    value = _det(w, x)
    return value, value, value


def _det(w: GraphWriter, x: fx.Node) -> ir.Value:
    dtype = result_type(x)
    value = w.emit("Det", w.tensor(x, torch.float32))
    return value if dtype == torch.float32 else w.cast(value, dtype)
