"""nf4: 16 quantiles of the normal distribution in four bits, the largest weight of a block at one

Kernel: none; the weight is looked up when a model is opened, and costs time and memory as float32.
Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E (the numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.ops.repack_codes import repack_codes
from compiler.quantization.formats.levels import LevelGrid, Levels
from compiler.quantization.formats.weight_format import WeightFormat
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.packing import pack_codes
from compiler.quantization.scales import Grid, least_error_grid, part_factors, positive

CODE_BITS = 4
VALUES = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
LEVELS = Levels(VALUES, torch.arange(16), (VALUES[:-1] + VALUES[1:]) / 2)


@dataclass(frozen=True)
class Nf4(WeightFormat):
    """Steps that are narrow where normal weights are many."""

    name: ClassVar[str] = "nf4"
    usual_block: ClassVar[int] = 64
    gentler: ClassVar[str | None] = "int8"

    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        """The largest magnitude as the scale, or parts of it."""
        extreme = blocks.abs().amax(-1, keepdim=True)
        factors = part_factors(CODE_BITS, self.clip)
        grids = (LevelGrid(positive(extreme * f), torch.zeros_like(extreme), 0, 15, LEVELS) for f in factors)
        return least_error_grid(blocks, grids, importance).in_half()

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """Two codes a byte."""
        return PackedBlocks.in_half(pack_codes(codes, CODE_BITS), grid.scale[..., 0], CODE_BITS, VALUES)

    def steps(self, packed: PackedBlocks) -> Tensor:
        """The quantiles."""
        assert packed.table is not None
        return packed.table[repack_codes(packed.weight, CODE_BITS, 8).to(torch.int32)]


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Nf4]
