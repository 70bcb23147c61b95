"""Layers with quantized weights in the operators of com.microsoft: products and tables."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator
from compiler.ops.dequantize_linear import dequantize_linear
from compiler.ops.dynamic_quantize_linear import dynamic_quantize_linear
from compiler.ops.dynamic_quantized_linear import dynamic_quantized_linear
from compiler.ops.matmul_integer import matmul_integer
from compiler.ops.quantized_embedding import quantized_embedding
from compiler.ops.quantized_linear import quantized_linear

MICROSOFT = "com.microsoft"


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Value = None, bias: Tensor | None = None, *, node: NodeContext
) -> Tensor:
    if b.dtype == torch.int8 and b.dim() == 2 and _is_zero(b_zero_point):
        y: Tensor = dynamic_quantized_linear(a, b, b_scale, bias)
        return y
    codes, scale, zero_point = dynamic_quantize_linear(a)
    zero = None if b_zero_point is None else node.tensor(b_zero_point)
    return _scaled(matmul_integer(codes, b, zero_point, zero), scale, b_scale, bias)


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor,
    a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return _scaled(matmul_integer(a, b, a_zero_point, b_zero_point), a_scale, b_scale, bias)


def _scaled(product: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor | None) -> Tensor:
    y = product.to(b_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


def _is_zero(zero_point: Value) -> bool:
    return zero_point is None or (isinstance(zero_point, Known) and zero_point.is_plain and not zero_point.array.any())


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(
    a: Tensor, b: Tensor, scales: Tensor, zero_points: Tensor | None = None, g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *, k: int, n: int, bits: int = 4, block_size: int, accuracy_level: int = 0, node: NodeContext,
) -> Tensor:  # fmt: skip
    """b uint8 [n, blocks, block_size * bits / 8], scales [n * blocks], zero_points packed or of a's dtype."""
    if g_idx is not None:
        raise node.refuse("it groups inputs by g_idx", "Write the model without g_idx: inputs in order.")
    blocks = -(-k // block_size)
    weight = _shaped(b, (n, blocks, block_size * bits // 8))
    if zero_points is not None and zero_points.dtype != torch.uint8:
        raise node.refuse("its zero points are floats", "Zero points that are packed integers are read.")
    points = None if zero_points is None else _shaped(zero_points, (n, -(-blocks * bits // 8)))
    y: Tensor = quantized_linear(
        a, weight, _shaped(scales, (n, blocks)), points, bias, bits, block_size, accuracy_level
    )
    return y


def _shaped(stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Earlier models store what belongs to [n, blocks] in one row."""
    return stored if tuple(stored.shape) == shape else stored.reshape(shape)


@operator("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(
    data: Tensor, indices: Tensor, scales: Tensor, zero_points: Tensor | None = None,
    *, bits: int = 4, block_size: int = 128, gather_axis: int = 0, quantize_axis: int = 1, node: NodeContext,
) -> Tensor:  # fmt: skip
    """data uint8 [vocabulary, width * bits / 8], or int4 or uint4 [vocabulary, width]."""
    if gather_axis != 0 or data.dim() != 2 or quantize_axis % data.dim() != 1:
        hint = "Tables [vocabulary, width] are read, gathered along dim 0 with blocks along dim 1."
        raise node.refuse(f"it gathers along dim {gather_axis} of {data.dim()} dims", hint)
    kind = node.input_type(0)
    if kind is None or kind.name == "UINT8":
        found: Tensor = quantized_embedding(indices, data, scales, zero_points, bits, block_size)
        return found
    rows = [None if one is None else one[indices] for one in (data, scales, zero_points)]
    codes, row_scales, points = rows
    assert codes is not None
    assert row_scales is not None
    y: Tensor = dequantize_linear(codes, row_scales, points, kind.name.lower(), -1, block_size)
    return y


@operator("QuantizedEmbedding", domain="regraft")
def quantized_table(indices: Tensor, weight: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    """One scale a row."""
    width = weight.shape[1] * 8 // bits
    y: Tensor = quantized_embedding(indices, weight, scales, None, bits, 1 << max(4, (int(width) - 1).bit_length()))
    return y
