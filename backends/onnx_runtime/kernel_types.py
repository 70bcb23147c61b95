"""Element types that ONNX Runtime's CPU kernels of an operator do not take, and those that stand in for them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from compiler.backends.onnx_runtime.graph_writer import NOT_IN_NUMPY, GraphWriter

HARDLY_COMPUTED = dict.fromkeys(NOT_IN_NUMPY, torch.float32)
"""Numbers of 8 and 16 bits that kernels move and convert, and hardly ever compute with."""
WITHOUT_FLOAT64 = (
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cosh", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Mish", "PRelu", "Selu", "Sinh", "Softplus", "Softsign", "Tan", "ThresholdedRelu",
)  # fmt: skip
"""They come back as float64 with float32's precision, which is a thousand times finer than what lowering promises."""
STAND_INS: dict[str, dict[torch.dtype, torch.dtype]] = {
    **{op: {torch.float64: torch.float32} for op in WITHOUT_FLOAT64},
    "Celu": {torch.float64: torch.float32, torch.float16: torch.float32},
    "Max": {torch.int16: torch.int32, torch.uint16: torch.int32},
    "Min": {torch.int16: torch.int32, torch.uint16: torch.int32},
    "Pow": dict.fromkeys((torch.int8, torch.uint8, torch.int16), torch.int32),
    "Where": {
        torch.bool: torch.uint8,
        torch.int16: torch.int32,
        torch.uint16: torch.int32,
        torch.uint64: torch.int64,
    },
}
"""operator -> element type -> the type that it is computed in."""


def kernel_type(op: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which `op` of `dtype` is computed: itself where there is a kernel."""
    return STAND_INS.get(op, {}).get(dtype) or HARDLY_COMPUTED.get(dtype, dtype)


def computed(
    w: GraphWriter, op: str, dtype: torch.dtype, *operands: Any, result: torch.dtype | None = None, **attributes: Any
) -> ir.Value:
    """`op` of nodes, numbers and values that are all taken as `dtype`, cast to and fro where that has no kernel.

    The result is of `dtype`, or of `result` where the operator itself changes the type, as comparisons do.
    """
    kernel = kernel_type(op, dtype)
    given = [_operand(w, one, dtype, kernel) for one in operands]
    made = w.emit(op, *given, **attributes)
    return made if kernel == dtype or result is not None else w.cast(made, dtype)


def _operand(w: GraphWriter, operand: Any, dtype: torch.dtype, kernel: torch.dtype) -> ir.Value:
    if isinstance(operand, ir.Value):
        return operand if kernel == dtype else w.cast(operand, kernel)
    return w.tensor(operand, kernel)
