"""regraft::fake_quantize_linear(x, scale, zero_point, to, axis, block_size, saturate) -> x rounded to codes of `to`.

    y = dequantize_linear(quantize_linear(x, scale, zero_point, to), scale, zero_point)     shape of x, dtype of scale

Gradients pass to x where it is not clipped, as if nothing were rounded (straight-through: Bengio et al. 2013,
arXiv:1308.3432); to the scales goes what rounding leaves (Esser et al. 2020, arXiv:1902.08153, eq. 3).
Source: ONNX QuantizeLinear and DequantizeLinear, opset 25; the pair is how QDQ models mark quantized activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.ops.dequantize_linear import dequantize_linear_reference
from compiler.ops.quantize_linear import quantize_linear_reference
from compiler.quantization.element_types import CARRIERS, INTEGER_RANGES
from compiler.quantization.granularity import gathered, spread

SCHEMA = "(Tensor x, Tensor scale, Tensor? zero_point, str to, int axis, int block_size, bool saturate) -> Tensor"


@torch.library.custom_op("regraft::fake_quantize_linear", mutates_args=(), schema=SCHEMA)
def fake_quantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, to: str, axis: int, block_size: int, saturate: bool
) -> Tensor:
    """Values as the module's docstring defines them."""
    codes = quantize_linear_reference(x, scale, zero_point, to, axis, block_size, saturate)
    return dequantize_linear_reference(codes, scale, zero_point, to, axis, block_size).contiguous()


@fake_quantize_linear.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, to: str, axis: int, block_size: int, saturate: bool
) -> Tensor:
    if to not in CARRIERS or to == "int32":
        raise ValueError(f"there is no quantizing to {to}")
    return torch.empty_like(x, dtype=scale.dtype, memory_format=torch.contiguous_format)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, to, axis, block_size, _ = inputs
    ctx.save_for_backward(x, scale, zero_point, output)
    ctx.to, ctx.axis, ctx.block_size = to, axis, block_size


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point, output = ctx.saved_tensors
    wide = torch.promote_types(scale.dtype, torch.float32)
    quotient = x.to(wide) / spread(scale.to(wide), x.shape, ctx.axis, ctx.block_size)
    inside = torch.ones_like(quotient, dtype=torch.bool)
    if ctx.to in INTEGER_RANGES:
        low, high = INTEGER_RANGES[ctx.to]
        zero = 0.0 if zero_point is None else spread(zero_point.to(wide), x.shape, ctx.axis, ctx.block_size)
        code = torch.round(quotient) + zero
        inside = (code >= low) & (code <= high)
    grad_x = grad_scale = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.where(inside, gradient, 0).to(x.dtype)
    if ctx.needs_input_grad[1]:
        code_value = output.to(wide) / spread(scale.to(wide), x.shape, ctx.axis, ctx.block_size)
        slope = torch.where(inside, code_value - quotient, code_value)
        grad_scale = gathered(gradient * slope, scale, ctx.axis, ctx.block_size).to(scale.dtype)
    return grad_x, grad_scale, None, None, None, None, None


fake_quantize_linear.register_autograd(_backward, setup_context=_save_inputs)
