"""linear(x, W)  ->  linear of blocks, a shuffle, linear of blocks: as wide inside as the narrower side of W

Before:  linear(x, W, b)
After:   every block of inputs through a layer of its own; what these give, shuffled; every block of outputs through a
         layer of its own. The number of blocks alone says how many numbers are left: about (1 / in + 1 / out) *
         min(in, out) / blocks of them
Shapes:  x [..., in], W [out, in]; first factor `blocks` times [inner / blocks, in / blocks], second `blocks` times
         [out / blocks, inner / blocks], with inner the largest multiple of blocks ** 2 in min(in, out). Blocks of sizes
         that do not divide differ by one.
Lossy:   these are Monarch matrices of one width, and fitted, healed and quantized as `monarch` fits them. The budget
         tries half as many blocks, then gives a site back.
Refuses: what `monarch` refuses; weights with a side of less than blocks ** 2.
Source:  Wei et al. 2024, arXiv:2406.16450, section 3.1 (BlockShuffle), there trained from random factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.rewriting import Pass
from compiler.structured.linear_graft import BlockDiagonalGraft
from compiler.structured.linear_layers import Layer
from compiler.structured.structure import Structure, shuffled


@dataclass(frozen=True)
class BlockShuffle(BlockDiagonalGraft):
    """Stores weights as two block-diagonal factors of a fixed width with a shuffle between them."""

    name: ClassVar[str] = "block-shuffle"

    def structure(self, layer: Layer) -> Structure:
        """As wide inside as the narrower side."""
        return shuffled(*layer.shape, self.blocks)

    def gentler(self, structure: Structure) -> Structure:
        """Half as many blocks; the same again where there are no two left."""
        half = len(structure.in_sizes) // 2
        return shuffled(sum(structure.out_sizes), sum(structure.in_sizes), half) if half > 1 else structure


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [BlockShuffle]
