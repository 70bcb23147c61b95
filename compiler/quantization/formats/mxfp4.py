"""mxfp4: floats of four bits (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), 32 in a block under a power of two

Stored: two elements a byte, the sign as the highest bit, and E8M0 scales. Zero is written without a sign.
Kernel: MatMulNBits of 8 bits: twice an element is a whole number, so that elements become codes when a model is opened;
four bits in the file, eight in memory.
Source: OCP Microscaling Formats (MX) Specification v1.0, 2023, section 5.3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.ops.quantized_linear import quantized_linear
from compiler.ops.repack_codes import repack_codes
from compiler.quantization.formats.levels import LevelGrid, float_levels
from compiler.quantization.formats.microscaling import Microscaling, from_scale_bytes, scale_bytes
from compiler.quantization.formats.weight_format import WeightFormat
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.packing import pack_codes
from compiler.quantization.scales import Grid

LEVELS = float_levels(exponent_bits=2, mantissa_bits=1, largest=6.0)
CODE_BITS, KERNEL_BITS = 4, 8
MIDDLE = 128
KERNEL_CODES = (MIDDLE + 2 * LEVELS.by_pattern(CODE_BITS)).to(torch.uint8)
"""By the bits of an element."""


@dataclass(frozen=True)
class Mxfp4(Microscaling):
    """Four bits and a quarter."""

    name: ClassVar[str] = "mxfp4"
    largest_exponent: ClassVar[int] = 2
    gentler: ClassVar[str | None] = "mxint8"

    def element_grid(self, scale: Tensor) -> Grid:
        """Fifteen values: zero counts once."""
        return LevelGrid(scale, torch.zeros_like(scale), 0, len(LEVELS.values) - 1, LEVELS)

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """Two elements a byte."""
        patterns = LEVELS.patterns[codes.long()]
        scales = scale_bytes(grid.scale[..., 0])
        return PackedBlocks(pack_codes(patterns, CODE_BITS), scales, None, CODE_BITS, codes.shape[-1], KERNEL_CODES)

    def steps(self, packed: PackedBlocks) -> Tensor:
        """Twice the elements, whole numbers."""
        return self._kernel_codes(packed).float() - MIDDLE

    def scales(self, packed: PackedBlocks) -> Tensor:
        """Halves of the powers of two."""
        return from_scale_bytes(packed.scales, -1)

    def product(self, x: Tensor, packed: PackedBlocks, bias: Tensor | None) -> Tensor:
        """quantized_linear of eight bits."""
        codes = self._kernel_codes(packed)
        y: Tensor = quantized_linear(x, codes, self.scales(packed), None, bias, KERNEL_BITS, self.block_size)
        return y

    def _kernel_codes(self, packed: PackedBlocks) -> Tensor:
        assert packed.table is not None
        return packed.table[repack_codes(packed.weight, CODE_BITS, 8).to(torch.int32)]


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Mxfp4]
