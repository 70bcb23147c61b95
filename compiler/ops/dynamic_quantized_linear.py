"""regraft::dynamic_quantized_linear(x, weight, scales, bias) -> y: int8 weights, activations quantized on the way in.

    x [..., in], weight int8 [in, out], scales float32 [out], bias [out] or none   ->   y [..., out], dtype of x

    x_scale = (max(x, 0) - min(x, 0)) / 255,  1 where that is 0;   x_zero = round(-min(x, 0) / x_scale)
    codes = clamp(round(x / x_scale) + x_zero, 0, 255)             one scale for the whole of x; halves round to even
    y = ((codes - x_zero) @ weight) * (x_scale * scales) + bias    the product is exact in integers

Gradients go to x and bias as if nothing were rounded (straight-through: Bengio et al. 2013, arXiv:1308.3432).
Source: ONNX DynamicQuantizeLinear (opset 11) with MatMulInteger; com.microsoft DynamicQuantizeMatMul.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMA = "(Tensor x, Tensor weight, Tensor scales, Tensor? bias) -> Tensor"
EXACT_FLOAT32_TERMS = 512
"""The sum of this many products of a uint8 and an int8 stays below 2**24, where float32 counts exactly."""


def quantize_dynamically(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (whole numbers 0 to 255 in float32, shape of x), scale and zero point (float32 scalars) of x."""
    x = x.float()
    low, high = torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((0.0 - low / scale).clamp(0, 255))
    codes = (torch.round(x / scale) + zero).clamp_(0, 255)
    return codes, scale, zero


def dynamic_quantized_linear_reference(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The definition, with the integer product in 64-bit integers."""
    codes, scale, zero = quantize_dynamically(x)
    product = (codes - zero).long() @ weight.long()  # [..., out]
    y = product.float() * (scale * scales)
    return (y if bias is None else y + bias.float()).to(x.dtype)


@torch.library.custom_op("regraft::dynamic_quantized_linear", mutates_args=(), schema=SCHEMA)
def dynamic_quantized_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The same numbers as the reference, through float32 products of so few terms that each is exact."""
    codes, scale, zero = quantize_dynamically(x)
    codes -= zero
    product: Tensor | None = None
    for start in range(0, weight.shape[0], EXACT_FLOAT32_TERMS):
        stop = start + EXACT_FLOAT32_TERMS
        part = codes[..., start:stop] @ weight[start:stop].float()  # [..., out]
        product = part if product is None else product.double() + part
    assert product is not None
    y = product.float() * (scale * scales)
    return (y if bias is None else y + bias.float()).to(x.dtype)


@dynamic_quantized_linear.register_fake
def _(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() != 2 or weight.dtype != torch.int8 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"weight {weight.dtype} {tuple(weight.shape)} for x {tuple(x.shape)}; int8 [in, out] is needed"
        )
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, scales, _ = inputs
    ctx.save_for_backward(weight, scales)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weight, scales = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = ((gradient.float() * scales) @ weight.float().T).to(gradient.dtype)
    if ctx.needs_input_grad[3]:
        grad_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return grad_x, None, None, grad_bias


dynamic_quantized_linear.register_autograd(_backward, setup_context=_save_inputs)
