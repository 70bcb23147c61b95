"""ternary-base3: the values of `ternary`, five in a byte: 1.6 bits each

    byte = t_0 + 3 t_1 + 9 t_2 + 27 t_3 + 81 t_4 with t the value plus 1; the last byte of a block is filled with zeros

When a model is opened the values become codes of two bits, once. Kernel: MatMulNBits of 2 bits.
Source: as `ternary`; 3**5 = 243 of 256 bytes are used, as in llama.cpp's TQ1_0 (whose bytes are scaled to fractions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.ops.quantized_linear import quantized_linear
from compiler.ops.repack_codes import repack_codes
from compiler.quantization.formats.ternary import CODE_BITS, Ternary
from compiler.quantization.formats.weight_format import WeightFormat
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.scales import Grid

PER_BYTE = 5


@dataclass(frozen=True)
class TernaryBase3(Ternary):
    """Three values a block: 1.6 bits in the file, two in memory."""

    name: ClassVar[str] = "ternary-base3"

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """Five values a byte."""
        size = codes.shape[-1]
        trits = torch.unflatten(torch.nn.functional.pad(codes + 1, (0, -size % PER_BYTE)), -1, (-1, PER_BYTE))
        weights = 3 ** torch.arange(PER_BYTE, dtype=codes.dtype)
        stored = (trits * weights).sum(-1).to(torch.uint8)
        return PackedBlocks(stored, grid.scale[..., 0].float().contiguous(), None, CODE_BITS, size)

    def steps(self, packed: PackedBlocks) -> Tensor:
        """-1, 0 and 1."""
        return self._trits(packed).float() - 1

    def product(self, x: Tensor, packed: PackedBlocks, bias: Tensor | None) -> Tensor:
        """quantized_linear of two bits."""
        codes = repack_codes((self._trits(packed) + 1).to(torch.uint8), 8, CODE_BITS)
        y: Tensor = quantized_linear(x, codes, packed.scales, None, bias, CODE_BITS, self.block_size)
        return y

    def _trits(self, packed: PackedBlocks) -> Tensor:
        """0, 1 and 2 as int32 [..., blocks, block_size]."""
        held = packed.weight.to(torch.int32)[..., None]
        places = [torch.div(held, 3**place, rounding_mode="floor") for place in range(PER_BYTE)]
        return torch.remainder(torch.cat(places, -1), 3).flatten(-2)[..., : self.block_size]


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [TernaryBase3]
