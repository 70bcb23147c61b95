"""Quantizing and dequantizing, and products of integers. What only joins these, as QLinearConv does, is written out as
the nodes it stands for before anything is read (compiler.frontends.onnx_model.qlinear_expansion)."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.element_types import dtype_of
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.windows import windows
from compiler.ops.conv_integer import conv_integer as integer_convolution
from compiler.ops.dequantize_linear import dequantize_linear as dequantized
from compiler.ops.dynamic_quantize_linear import dynamic_quantize_linear as dynamically_quantized
from compiler.ops.fake_quantize_linear import fake_quantize_linear as fake_quantized
from compiler.ops.matmul_integer import matmul_integer as integer_product
from compiler.ops.quantize_linear import quantize_linear as quantized
from compiler.quantization.element_types import CARRIERS

MICROSOFT = "com.microsoft"
NUMBERED = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
"""Element types of quotients by their ONNX numbers."""


@operator("QuantizeLinear", since=10)
@operator("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(
    x: Tensor, y_scale: Tensor, y_zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1,
    node: NodeContext,
) -> Tensor:  # fmt: skip
    to = _quantized_type(node, y_zero_point, output_dtype)
    scale = _quotient_type(y_scale, precision)
    y: Tensor = quantized(x, scale, y_zero_point, to, axis, block_size, bool(saturate))
    return y


@operator("FakeQuantizeLinear", domain="regraft")
def fake_quantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1,
    node: NodeContext,
) -> Tensor:  # fmt: skip
    """QuantizeLinear and then DequantizeLinear with the same scales, so that gradients pass."""
    to = _quantized_type(node, zero_point, output_dtype)
    y: Tensor = fake_quantized(x, scale, zero_point, to, axis, block_size, bool(saturate))
    return y


@operator("DequantizeLinear", since=10)
@operator("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, node: NodeContext,
) -> Tensor:  # fmt: skip
    kind = node.input_type(0)
    of = kind.name.lower() if kind is not None else _carried(node, x)
    if of not in CARRIERS:
        raise node.refuse(f"its input is {of}", f"Types that are dequantized: {', '.join(CARRIERS)}.")
    scale = x_scale if not output_dtype else x_scale.to(dtype_of(output_dtype))
    scale = scale.float() if scale.element_size() == 1 else scale
    y: Tensor = dequantized(x, scale, x_zero_point, of, axis, block_size)
    return y


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero_point = dynamically_quantized(x)
    return codes, scale, zero_point


@operator("MatMulInteger", since=10)
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """A vector with a single row or column is a vector, as in numpy."""
    left, right = a.dim() == 1, b.dim() == 1
    product: Tensor = integer_product(a[None] if left else a, b[:, None] if right else b, a_zero_point, b_zero_point)
    product = product.squeeze(-1) if right else product
    return product.squeeze(-1 if right else -2) if left else product


@operator("ConvInteger", since=10)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
) -> Tensor:
    """x [batch, channels, *spatial], w [out_channels, channels / group, *kernel]."""
    place = windows(x, w.shape[2:], auto_pad, pads, strides, dilations)
    padding = [*place.starts, *place.ends]
    y: Tensor = integer_convolution(x, w, x_zero_point, w_zero_point, place.strides, padding, place.dilations, group)
    return y


def _quantized_type(node: NodeContext, zero_point: Tensor | None, output_dtype: int) -> str:
    """The element type that is quantized to: that of the zero point, else the one stated, else uint8."""
    import onnx_ir as ir

    kind = node.input_type(2) if zero_point is not None else None
    if kind is not None:
        to = str(kind.name).lower()
    elif zero_point is not None:
        to = _carried(node, zero_point)
    else:
        to = str(ir.DataType(output_dtype).name).lower() if output_dtype else "uint8"
    if to not in CARRIERS or to == "int32":
        possible = ", ".join(name for name in CARRIERS if name != "int32")
        raise node.refuse(f"there is no quantizing to {to}", f"Types that are quantized to: {possible}.")
    return to


def _quotient_type(scale: Tensor, precision: int) -> Tensor:
    """The scale in the type that the quotient is taken in."""
    if precision in NUMBERED:
        return scale.to(NUMBERED[precision])
    return scale.float() if not scale.is_floating_point() or scale.element_size() == 1 else scale


def _carried(node: NodeContext, codes: Tensor) -> str:
    """The element type of codes that nothing states: what their dtype carries first."""
    for name, dtype in CARRIERS.items():
        if dtype == codes.dtype:
            return name
    raise node.refuse(f"its codes are {codes.dtype}", "Codes are integers or 8-bit floats.")
