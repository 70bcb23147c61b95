"""ternary: -1, 0 and 1 times a float scale a block, in two bits each

With clip=none the scale is the mean magnitude of the block, as in BitNet b1.58, and weights go to the nearest of the
three values, RoundClip(w / mean |w|, -1, 1); with clip=mse to those of the best of scales around it. The optimum is
that of Ternary Weight Networks: a threshold of half the scale, and for the scale the mean of what lies above it.
BitNet trains its weights for one scale a matrix; those of a trained model need one a block.

Stored: the value plus 2 as a code of two bits, the zero point that MatMulNBits takes where none is given.
Kernel: MatMulNBits of 2 bits.
Source: Ma et al. 2024, arXiv:2402.17764, section 2, eq. 1 to 3; Li et al. 2016, arXiv:1605.04711, eq. 4 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.ops.quantized_linear import quantized_linear
from compiler.ops.repack_codes import repack_codes
from compiler.quantization.formats.weight_format import QUANTIZED_LINEAR, WeightFormat
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.scales import Grid, least_error_grid, positive

MEAN_FACTORS = (1.0, 0.9, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.3)
"""Of the mean magnitude: weights of a normal distribution are best at 1.53, of a Laplace distribution at 2."""
ZERO_CODE, CODE_BITS = 2, 2


@dataclass(frozen=True)
class Ternary(WeightFormat):
    """Three values a block: two bits in the file and in memory."""

    name: ClassVar[str] = "ternary"
    usual_block: ClassVar[int] = 128
    block_sizes: ClassVar[tuple[int, ...] | None] = (16, 32, 64, 128, 256)
    operator: ClassVar[str | None] = QUANTIZED_LINEAR
    gentler: ClassVar[str | None] = "int4"

    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        """Codes -1, 0 and 1."""
        mean = blocks.abs().mean(-1, keepdim=True)
        factors = MEAN_FACTORS if self.clip == "mse" else (1.0,)
        grids = (Grid(positive(mean * factor), torch.zeros_like(mean), -1, 1) for factor in factors)
        return least_error_grid(blocks, grids, importance).in_half()

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """Four values a byte."""
        return PackedBlocks.of(codes + ZERO_CODE, grid, CODE_BITS, zero_points=False)

    def steps(self, packed: PackedBlocks) -> Tensor:
        """-1, 0 and 1."""
        codes: Tensor = repack_codes(packed.weight, CODE_BITS, 8)
        return codes.float() - ZERO_CODE

    def product(self, x: Tensor, packed: PackedBlocks, bias: Tensor | None) -> Tensor:
        """quantized_linear of two bits."""
        y: Tensor = quantized_linear(x, packed.weight, packed.scales, None, bias, CODE_BITS, self.block_size)
        return y


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Ternary]
