"""regraft::dynamic_quantize_linear(x) -> (codes, scale, zero_point): x as uint8, with the range it is found to have.

    x float32 [...]   ->   codes uint8 [...], scale float32 [], zero_point uint8 []

    scale = (max(x, 0) - min(x, 0)) / 255;   zero_point = round(-min(x, 0) / scale)
    codes = clamp(round(x / scale) + zero_point, 0, 255)          halves round to even; a scale of 0 becomes 1

The three results are constants to a gradient; where the product that reads them is known too, it is one
`regraft::dynamic_quantized_linear`, which passes gradients straight through.
Source: ONNX DynamicQuantizeLinear, opset 11.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.ops.dynamic_quantized_linear import quantize_dynamically

SCHEMA = "(Tensor x) -> (Tensor, Tensor, Tensor)"


def dynamic_quantize_linear_reference(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in ATen operators."""
    codes, scale, zero = quantize_dynamically(x)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


@torch.library.custom_op("regraft::dynamic_quantize_linear", mutates_args=(), schema=SCHEMA)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point as the module's docstring defines them."""
    codes, scale, zero_point = dynamic_quantize_linear_reference(x)
    return codes.contiguous(), scale, zero_point


@dynamic_quantize_linear.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.empty_like(x, dtype=torch.uint8, memory_format=torch.contiguous_format)
    return codes, x.new_empty((), dtype=torch.float32), x.new_empty((), dtype=torch.uint8)
