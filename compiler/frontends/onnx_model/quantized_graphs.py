"""Quantized operators of an ONNX model as the few forms that are read: written out or raised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.graph_rewriting import rewrite
from compiler.frontends.onnx_model.qlinear_expansion import dequantize_first, expand_qlinear
from compiler.frontends.onnx_model.quantized_raising import (
    raise_block_product,
    raise_dynamic_product,
    raise_fake_quantization,
    raise_integer_to_float,
    raise_six_bit_table,
)
from compiler.frontends.traced_module import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

RAISING = (
    raise_integer_to_float,
    raise_dynamic_product,
    raise_six_bit_table,
    raise_block_product,
    raise_fake_quantization,
)


def unify_quantized(doing: str, model: ir.Model) -> None:
    """Write out operators on codes, then raise what stands for one product, table or rounding. In place.

    Raises CompilerError where a quantized operator is malformed.
    """
    try:
        rewrite(model.graph, [expand_qlinear])
        rewrite(model.graph, [dequantize_first])
        rewrite(model.graph, RAISING)
    except Exception as error:  # inputs that are missing or of the wrong rank raise whatever they raise
        problem = f"its quantized operators cannot be read ({first_line(error)})"
        raise CompilerError(doing, problem, "The file is damaged.") from error
