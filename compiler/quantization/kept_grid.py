"""Weights that lie on a grid of few bits already, block for block, as those do that were dequantized from GGUF files.

    Q4_1   w = d q + m          q 0..15     d = (highest - lowest) / 15, m = lowest
    Q4_0   w = d (q - 8)        q 0..15     d = extreme / -8, with the sign of the number of largest magnitude
    Q8_0   w = d q              q -127..127 d = largest magnitude / 127

Blocks are of 32 numbers, d and m float16. Found again, codes and steps give the weights to float32's rounding, so that
nothing is lost where rounding anew to another grid of as many bits would lose as much as with any other weights. With
d and m in a byte each (`byte_scales`) next to nothing is lost either, and Q4_1 takes 4.5 bits a number in place of 5.
Source: llama.cpp, ggml-quants.c (block_q4_0, block_q4_1, block_q8_0).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compiler.quantization.byte_scales import nearest_bytes
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.packing import pack_codes

BLOCK_SIZE = 32
ROUNDING = 1e-6
"""Largest distance from the grid, relative to the largest weight: float32's rounding of d q + m."""
ROWS_AT_ONCE = 2048

Blocks = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From numbers [rows, blocks, 32] and bits to the steps and zero points [rows, blocks, 1] they would have."""


def kept_grid(weight: Tensor, bits: int) -> PackedBlocks | None:
    """The blocks that `weight` [rows, width] of 4 or 8 bits was made of; None where it lies on none of the grids."""
    if bits not in (4, 8) or weight.shape[1] % BLOCK_SIZE:
        return None
    if (found := _on(weight, bits, _around_middle)) is not None or bits == 8:
        return found
    return _on(weight, bits, _from_lowest)


def kept_in_bytes(weight: Tensor, kept: PackedBlocks) -> PackedBlocks:
    """`kept` of `weight` [rows, width], its d and m in a byte each; as it is where a row has one block, or float16 no
    number for a row.
    """
    if kept.scales.shape[1] == 1:
        return kept
    middle = torch.full_like(kept.scales, 2 ** (kept.bits - 1)) if kept.zero_points is None else kept.zero_points
    scales, lowest = nearest_bytes(kept.scales), nearest_bytes(-middle * kept.scales, with_zero=True)
    if scales is None or lowest is None:
        return kept
    zero = middle if kept.zero_points is None else -lowest.values / scales.values
    blocks = torch.unflatten(weight.detach().float(), -1, (-1, kept.block_size))
    codes = (blocks / scales.values[..., None] + zero[..., None]).round_().clamp_(0, 2**kept.bits - 1)
    points = None if kept.zero_points is None else zero
    return PackedBlocks(pack_codes(codes.to(torch.uint8), kept.bits), scales.values, points, kept.bits, kept.block_size)


def _on(weight: Tensor, bits: int, grid_of: Blocks) -> PackedBlocks | None:
    weight = weight.detach().float()
    allowed = ROUNDING * float(weight.abs().max())
    found = []
    for part in torch.split(weight, ROWS_AT_ONCE):
        blocks = torch.unflatten(part, -1, (-1, BLOCK_SIZE))
        scale, zero = grid_of(blocks, bits)
        codes = (blocks / scale + zero).round().clamp(0, 2**bits - 1)
        if not bool((((codes - zero) * scale - blocks).abs() <= allowed).all()):
            return None
        points = zero[..., 0].contiguous() if grid_of is _from_lowest else None
        packed = pack_codes(codes.to(torch.uint8), bits)
        found.append(PackedBlocks(packed, scale[..., 0].contiguous(), points, bits, BLOCK_SIZE))
    return PackedBlocks.joined(found)


def _around_middle(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = extreme / -8 if bits == 4 else extreme.abs() / 127
    scale = scale.half().float()
    return torch.where(scale == 0, 1.0, scale), torch.full_like(scale, 2 ** (bits - 1))


def _from_lowest(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    lowest, highest = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale = ((highest - lowest) / (2**bits - 1)).half().float()
    # A block of one number over and over has no step: with the number as the step, a zero point of -1 gives it.
    scale = torch.where(scale == 0, torch.where(lowest == 0, 1.0, lowest.abs()), scale)
    return scale, -lowest.half().float() / scale
