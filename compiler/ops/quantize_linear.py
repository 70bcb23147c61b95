"""regraft::quantize_linear(x, scale, zero_point, to, axis, block_size, saturate) -> codes of type `to`.

    x float [...], scale [] or [n] or blocks, zero_point of scale's shape or none
    ->  [...] of the dtype that carries `to` (compiler.quantization.element_types)

    codes = saturate(round(x / scale) + zero_point)          halves round to even; the quotient is in scale's dtype

A scalar scale holds for the whole tensor, a vector for the slices along `axis`; with block_size > 0 the scale has the
rank of x and each of its numbers holds for block_size slices along `axis`. `saturate` is for float8 alone.
Codes are constants to a gradient; `regraft::fake_quantize_linear` passes it straight through.
Source: ONNX QuantizeLinear, opset 25.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.quantization.element_types import CARRIERS, rounded_to
from compiler.quantization.granularity import spread

SCHEMA = "(Tensor x, Tensor scale, Tensor? zero_point, str to, int axis, int block_size, bool saturate) -> Tensor"


def quantize_linear_reference(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, to: str, axis: int, block_size: int, saturate: bool
) -> Tensor:
    """The definition, in ATen operators."""
    precise = scale.dtype if scale.is_floating_point() and scale.element_size() > 1 else torch.float32
    quotient = x.to(precise) / spread(scale.to(precise), x.shape, axis, block_size)
    zero = None if zero_point is None else spread(zero_point.float(), x.shape, axis, block_size)
    return rounded_to(quotient, zero, to, saturate)


@torch.library.custom_op("regraft::quantize_linear", mutates_args=(), schema=SCHEMA)
def quantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, to: str, axis: int, block_size: int, saturate: bool
) -> Tensor:
    """Codes as the module's docstring defines them."""
    return quantize_linear_reference(x, scale, zero_point, to, axis, block_size, saturate).contiguous()


@quantize_linear.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, to: str, axis: int, block_size: int, saturate: bool
) -> Tensor:
    if to not in CARRIERS or to == "int32":
        raise ValueError(f"there is no quantizing to {to}")
    return torch.empty_like(x, dtype=CARRIERS[to], memory_format=torch.contiguous_format)
