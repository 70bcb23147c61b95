"""regraft::dequantize_linear(codes, scale, zero_point, of, axis, block_size) -> y, what codes of type `of` stand for.

    codes [...] in the dtype that carries `of`, scale [] or [n] or blocks, zero_point of scale's shape or none
    ->  y [...], dtype of scale

    y = (codes - zero_point) * scale          computed in at least float32

Scales hold for the whole tensor, for slices along `axis`, or for blocks, as in `regraft::quantize_linear`.
Gradients go to the scales; codes and zero points are constants.
Source: ONNX DequantizeLinear, opset 25.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.quantization.element_types import CARRIERS
from compiler.quantization.granularity import gathered, spread

SCHEMA = "(Tensor codes, Tensor scale, Tensor? zero_point, str of, int axis, int block_size) -> Tensor"


def dequantize_linear_reference(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, of: str, axis: int, block_size: int
) -> Tensor:
    """The definition, in ATen operators."""
    centred = _centred(codes, scale, zero_point, axis, block_size)
    return (centred * spread(scale.to(centred.dtype), codes.shape, axis, block_size)).to(scale.dtype)


def _centred(codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block_size: int) -> Tensor:
    wide = torch.promote_types(scale.dtype, torch.float32)
    if zero_point is None:
        return codes.to(wide)
    return codes.to(wide) - spread(zero_point.to(wide), codes.shape, axis, block_size)


@torch.library.custom_op("regraft::dequantize_linear", mutates_args=(), schema=SCHEMA)
def dequantize_linear(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, of: str, axis: int, block_size: int
) -> Tensor:
    """Values as the module's docstring defines them."""
    return dequantize_linear_reference(codes, scale, zero_point, of, axis, block_size).contiguous()


@dequantize_linear.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, of: str, axis: int, block_size: int) -> Tensor:
    if CARRIERS.get(of) != codes.dtype:
        raise ValueError(f"codes of type {of} are not carried in {codes.dtype}")
    return torch.empty_like(codes, dtype=scale.dtype, memory_format=torch.contiguous_format)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, scale, zero_point, _, axis, block_size = inputs
    ctx.save_for_backward(codes, scale, zero_point)
    ctx.axis, ctx.block_size = axis, block_size


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale, zero_point = ctx.saved_tensors
    grad_scale = None
    if ctx.needs_input_grad[1]:
        product = gradient * _centred(codes, scale, zero_point, ctx.axis, ctx.block_size)
        grad_scale = gathered(product, scale, ctx.axis, ctx.block_size).to(scale.dtype)
    return None, grad_scale, None, None, None, None


dequantize_linear.register_autograd(_backward, setup_context=_save_inputs)
