"""mxint8: whole numbers from -127 to 127 over 64, in blocks of 32 under a power of two

Stored: the numbers plus 128, one a byte, and E8M0 scales. -128 is left unused, as the specification allows.
Kernel: MatMulNBits of 8 bits, which takes the scales as floats: they become so when a model is opened.
Source: OCP Microscaling Formats (MX) Specification v1.0, 2023, section 5.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.ops.quantized_linear import quantized_linear
from compiler.quantization.formats.microscaling import Microscaling, from_scale_bytes, scale_bytes
from compiler.quantization.formats.weight_format import WeightFormat
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.scales import Grid

FRACTION_BITS = 6
MIDDLE, LARGEST_CODE = 128, 127


@dataclass(frozen=True)
class Mxint8(Microscaling):
    """Eight bits and a quarter."""

    name: ClassVar[str] = "mxint8"
    largest_exponent: ClassVar[int] = 0

    def element_grid(self, scale: Tensor) -> Grid:
        """Even steps of a 64th of the scale."""
        return Grid(scale / 2**FRACTION_BITS, torch.zeros_like(scale), -LARGEST_CODE, LARGEST_CODE)

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """One code a byte."""
        scales = scale_bytes(grid.scale[..., 0] * 2**FRACTION_BITS)
        return PackedBlocks((codes + MIDDLE).to(torch.uint8), scales, None, 8, codes.shape[-1])

    def steps(self, packed: PackedBlocks) -> Tensor:
        """Whole numbers."""
        return packed.weight.float() - MIDDLE

    def scales(self, packed: PackedBlocks) -> Tensor:
        """64ths of the powers of two."""
        return from_scale_bytes(packed.scales, -FRACTION_BITS)

    def product(self, x: Tensor, packed: PackedBlocks, bias: Tensor | None) -> Tensor:
        """quantized_linear of eight bits."""
        y: Tensor = quantized_linear(x, packed.weight, self.scales(packed), None, bias, 8, self.block_size)
        return y


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Mxint8]
