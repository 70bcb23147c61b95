"""outside-signs: the sign of each weight in one bit, times the mean magnitude of its block.

Source: Rastegari et al. 2016, arXiv:1603.05279, eq. 6 (XNOR-Net), by blocks. Kernel: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compiler.ops.repack_codes import repack_codes
from compiler.quantization.formats import WeightFormat
from compiler.quantization.formats.levels import LevelGrid, Levels
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.packing import pack_codes
from compiler.quantization.scales import Grid, positive

SIGNS = Levels(torch.tensor([-1.0, 1.0]), torch.tensor([0, 1]), torch.tensor([0.0]))


@dataclass(frozen=True)
class OutsideSigns(WeightFormat):
    """One bit."""

    name: ClassVar[str] = "outside-signs"
    usual_block: ClassVar[int] = 64

    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        mean = positive(blocks.abs().mean(-1, keepdim=True))
        return LevelGrid(mean, torch.zeros_like(mean), 0, 1, SIGNS).in_half()

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        return PackedBlocks.in_half(pack_codes(codes, 1), grid.scale[..., 0], 1)

    def steps(self, packed: PackedBlocks) -> Tensor:
        return 2 * repack_codes(packed.weight, 1, 8).float() - 1
