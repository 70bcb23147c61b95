"""regraft::quantized_linear(x, weight, scales, zero_points, bias, bits, block_size, ...) -> y: weights in few bits.

    x [..., in], weight uint8 [out, blocks, block_size * bits / 8], scales [out, blocks]
    zero_points uint8 [out, ceil(blocks * bits / 8)], float [out, blocks] or none (2 ** (bits - 1)), bias [out] or none
    ->  y [..., out], dtype of x;   bits 2, 4 or 8;   blocks = ceil(in / block_size), the last one padded

    w[o, i] = (code[o, i] - zero[o, i // block_size]) * scales[o, i // block_size];   y = x @ w.T + bias

Codes lie lowest bits first. Gradients go to x and bias; the codes are constants. `accuracy_level` is for kernels: at 4
they may round x to 8 bits in blocks, at 0 and 1 they compute in float, as this definition does. What kernels are held
to is computed as they compute, under `inputs_rounded`: x is rounded for what codes around the middle give, and what
zero points between codes add is in float.
Source: com.microsoft MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from compiler.quantization.packing import unpack_codes, unpack_zero_points

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor scales, Tensor? zero_points, Tensor? bias, "
    "int bits, int block_size, int accuracy_level=4) -> Tensor"
)
INT8_COMPUTE = 4
LARGEST_INT8 = 127
_ROUNDING: ContextVar[bool] = ContextVar("whether inputs are rounded at level 4", default=False)


@contextmanager
def inputs_rounded() -> Iterator[None]:
    """Inside, products at accuracy level 4 round their inputs as ONNX Runtime's kernels for x86 do."""
    token = _ROUNDING.set(True)
    try:
        yield
    finally:
        _ROUNDING.reset(token)


def rounded_to_int8(x: Tensor, block_size: int) -> Tensor:
    """x [..., in] at the nearest of 255 steps of each block's largest magnitude, in float32."""
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % block_size))
    blocks = torch.unflatten(padded, -1, (-1, block_size))  # [..., blocks, block_size]
    step = blocks.abs().amax(-1, keepdim=True) / LARGEST_INT8
    rounded = torch.where(step > 0, (blocks / step).round() * step, 0.0)
    return rounded.flatten(-2)[..., : x.shape[-1]]


def dequantized_weight(weight: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int, inputs: int) -> Tensor:
    """The float32 weight [out, inputs] that the packed tensors stand for."""
    codes = unpack_codes(weight, bits).float()  # [out, blocks, block_size]
    if zero_points is None:
        zero: Tensor | float = float(2 ** (bits - 1))
    elif zero_points.is_floating_point():
        zero = zero_points.float()[..., None]
    else:
        zero = unpack_zero_points(zero_points, bits, scales.shape[1]).float()[..., None]
    return codes.sub_(zero).mul_(scales.float()[..., None]).flatten(1)[:, :inputs]


@torch.library.custom_op("regraft::quantized_linear", mutates_args=(), schema=SCHEMA)
def quantized_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bias: Tensor | None,
    bits: int,
    block_size: int,
    accuracy_level: int = INT8_COMPUTE,
) -> Tensor:
    """The definition: dequantize, then a float product."""
    matrix = dequantized_weight(weight, scales, zero_points, bits, x.shape[-1])
    read = x.float()
    y: Tensor | float = 0.0
    if accuracy_level == INT8_COMPUTE and _ROUNDING.get():
        if zero_points is not None and zero_points.is_floating_point():
            offsets = matrix - dequantized_weight(weight, scales, None, bits, x.shape[-1])
            y, matrix = torch.nn.functional.linear(read, offsets), matrix - offsets
        read = rounded_to_int8(x, block_size)
    y = y + torch.nn.functional.linear(read, matrix, None if bias is None else bias.float())
    return y.to(x.dtype)


@quantized_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bias: Tensor | None,
    bits: int,
    block_size: int,
    accuracy_level: int = INT8_COMPUTE,
) -> Tensor:
    if bits not in (2, 4, 8):
        raise ValueError(f"bits is {bits}; 2, 4 and 8 are possible")
    expected = (-(-x.shape[-1] // block_size), block_size * bits // 8)
    if weight.dim() != 3 or weight.shape[1:] != expected:
        raise ValueError(f"weight {tuple(weight.shape)} for {x.shape[-1]} inputs in blocks of {block_size}")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, scales, zero_points, _, bits, *_ = inputs
    ctx.save_for_backward(weight, scales, zero_points)
    ctx.bits, ctx.inputs = bits, x.shape[-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        weight, scales, zero_points = ctx.saved_tensors
        matrix = dequantized_weight(weight, scales, zero_points, ctx.bits, ctx.inputs)
        grad_x = (gradient.float() @ matrix).to(gradient.dtype)
    if ctx.needs_input_grad[4]:
        grad_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return grad_x, None, None, None, grad_bias, None, None, None


quantized_linear.register_autograd(_backward, setup_context=_save_inputs)
