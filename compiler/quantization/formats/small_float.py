"""What formats of small floats share: numbers of 8 bits with a sign, an exponent and a mantissa, a float scale a block.

Products have no kernel here: bytes are looked up in a table of 256 numbers when a model is opened. They are kept as
bytes, since ONNX Runtime gathers no rows of float8.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from compiler.quantization.formats.levels import LevelGrid, Levels
from compiler.quantization.formats.weight_format import WeightFormat
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.scales import Grid, least_error_grid, positive

PARTS = (1.0, 0.75, 0.5)
"""Of the scale that brings the largest weight to the largest number. A power of two moves nothing but subnormals."""


class SmallFloat(WeightFormat):
    """The numbers of `levels`, one a byte."""

    levels: ClassVar[Levels]
    usual_block: ClassVar[int] = 0

    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        """The largest weight of a block at the largest number, or where mse finds less error below it."""
        extreme = blocks.abs().amax(-1, keepdim=True) / self.levels.values[-1]
        zero, top = torch.zeros_like(extreme), len(self.levels.values) - 1
        parts = PARTS if self.clip == "mse" else PARTS[:1]
        grids = (LevelGrid(positive(extreme * part), zero, 0, top, self.levels) for part in parts)
        return least_error_grid(blocks, grids, importance).in_half()

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """The bits of the float type, in bytes."""
        stored = self.levels.patterns[codes.long()].to(torch.uint8)
        return PackedBlocks.in_half(stored, grid.scale[..., 0], 8, self.levels.by_pattern(8))

    def steps(self, packed: PackedBlocks) -> Tensor:
        """The numbers themselves."""
        assert packed.table is not None
        return packed.table[packed.weight.to(torch.int32)]
