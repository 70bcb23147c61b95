"""What the integer formats share: unsigned codes with a scale, and maybe a zero point, for each block of a row.

    weight = (code - zero) * scale          zero is 2 ** (bits - 1) where none is stored

Stored: codes uint8 [rows, blocks, block_size * bits / 8] and zero points [rows, ...], packed as
compiler.quantization.packing says, scales [rows, blocks]. Products are com.microsoft MatMulNBits; codes of a number of
bits that it does not know are put into more bits when a model is opened, so that they are few in the file alone.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from compiler.ops.quantized_embedding import quantized_embedding
from compiler.ops.quantized_linear import quantized_linear
from compiler.ops.repack_codes import repack_codes
from compiler.quantization.formats.weight_format import QUANTIZED_LINEAR, WeightFormat
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.scales import Grid
from compiler.quantization.stand_ins import BlockForm


class IntegerCodes(WeightFormat):
    """Codes of `bits` bits, which a kernel multiplies with as `kernel_bits`."""

    bits: ClassVar[int]
    kernel_bits: ClassVar[int]
    block_sizes: ClassVar[tuple[int, ...] | None] = (16, 32, 64, 128, 256)
    takes_zero_points: ClassVar[bool] = True
    operator: ClassVar[str | None] = QUANTIZED_LINEAR

    @property
    def form(self) -> BlockForm:
        """The settings as those of codes in blocks."""
        return BlockForm(self.bits, self.block_size, self.clip, self.symmetric)

    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        """With zero points, or with the fixed one and a scale of either sign."""
        return self.form.grid(blocks, importance)

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """Bits without gaps."""
        return self.form.packed(codes, grid)

    def steps(self, packed: PackedBlocks) -> Tensor:
        """Codes less their zero points."""
        codes: Tensor = repack_codes(packed.weight, self.bits, 8)
        if packed.zero_points is None:
            return codes.float() - float(2 ** (self.bits - 1))
        zeros: Tensor = repack_codes(packed.zero_points, self.bits, 8)
        return codes.float() - zeros[..., : packed.scales.shape[-1], None].float()

    def rows(self, indices: Tensor, packed: PackedBlocks, width: int) -> Tensor:
        """quantized_embedding, where there is one of so many bits and rows fill their blocks."""
        if not self._has_rows(width):
            return super().rows(indices, packed, width)
        table = packed.weight.view(packed.weight.shape[0], -1)
        points = packed.zero_points
        rows: Tensor = quantized_embedding(indices, table, packed.scales, points, self.bits, self.block_size)
        return rows

    def table(self, packed: PackedBlocks, width: int) -> PackedBlocks:
        """As it is for quantized_embedding, which gives rows of the type of their scales."""
        return packed if self._has_rows(width) else super().table(packed, width)

    def _has_rows(self, width: int) -> bool:
        return self.bits == self.kernel_bits and width % self.block_size == 0

    def product(self, x: Tensor, packed: PackedBlocks, bias: Tensor | None) -> Tensor:
        """quantized_linear with as many bits as it knows."""
        weight, points = packed.weight, packed.zero_points
        if self.bits != self.kernel_bits:
            weight = repack_codes(weight, self.bits, self.kernel_bits)
            if points is not None:
                wider = repack_codes(points, self.bits, self.kernel_bits)
                points = wider[:, : -(-packed.scales.shape[1] * self.kernel_bits // 8)]
        y: Tensor = quantized_linear(x, weight, packed.scales, points, bias, self.kernel_bits, self.block_size)
        return y
