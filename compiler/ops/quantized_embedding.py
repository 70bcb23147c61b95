"""regraft::quantized_embedding(indices, weight, scales, zero_points, bits, block_size) -> rows of a table of few bits.

    indices int [...], weight uint8 [vocabulary, width * bits / 8], scales [vocabulary, blocks]
    zero_points uint8 [vocabulary, ceil(blocks * bits / 8)] or none (2 ** (bits - 1))
    ->  [..., width], dtype of scales;   bits 2, 4, 6 or 8;   blocks = ceil(width / block_size)

    row[i] = (code[i] - zero[i // block_size]) * scales[i // block_size]

`block_size` is a power of two from 16; one that reaches the width means one scale a row. Six bits lie in two planes
(compiler.quantization.packing) and take no zero points. Only the rows asked for are dequantized.
Source: com.microsoft GatherBlockQuantized with gather_axis 0 and quantize_axis 1 (2, 4 and 8 bits).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.quantization.packing import unpack_codes, unpack_zero_points

SCHEMA = "(Tensor indices, Tensor weight, Tensor scales, Tensor? zero_points, int bits, int block_size) -> Tensor"


@torch.library.custom_op("regraft::quantized_embedding", mutates_args=(), schema=SCHEMA)
def quantized_embedding(
    indices: Tensor, weight: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int, block_size: int
) -> Tensor:
    """The definition. Raises IndexError for an index outside the table."""
    codes = unpack_codes(weight[indices], bits).float()  # [..., width]
    per_code = scales[indices].float().repeat_interleave(block_size, -1)[..., : codes.shape[-1]]
    if zero_points is None:
        zero: Tensor | float = float(2 ** (bits - 1))
    else:
        blocks = unpack_zero_points(zero_points[indices], bits, scales.shape[1]).float()
        zero = blocks.repeat_interleave(block_size, -1)[..., : codes.shape[-1]]
    return ((codes - zero) * per_code).to(scales.dtype)


@quantized_embedding.register_fake
def _(
    indices: Tensor, weight: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int, block_size: int
) -> Tensor:
    if bits not in (2, 4, 6, 8):
        raise ValueError(f"bits is {bits}; 2, 4, 6 and 8 are possible")
    if bits == 6 and zero_points is not None:
        raise ValueError("six bits take no zero points")
    return scales.new_empty((*indices.shape, weight.shape[1] * 8 // bits))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Nothing to save: indices and codes are constants to a gradient."""


def _backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
    return None, None, None, None, None, None


quantized_embedding.register_autograd(_backward, setup_context=_save_inputs)
