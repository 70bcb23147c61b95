"""linear(x, W)  ->  linear of blocks, then one linear: a block-diagonal factor and a dense one

Before:  linear(x, W, b)
After:   every block of inputs through a layer of its own, and all that these give through one layer to the outputs
Shapes:  x [..., in], W [out, in]; first factor `blocks` times [rank, in / blocks], second [out, blocks * rank]. Blocks
         of sizes that do not divide differ by one.
Lossy:   block i of the inputs goes through rank_i numbers and not all inputs through the same ones, so that the first
         factor is `blocks` times smaller than that of a low-rank weight as wide inside. Fitted, healed, given back and
         quantized as `monarch` is.
Refuses: what `monarch` refuses.
Source:  Wei et al. 2024, arXiv:2406.16450, section 3.1 (BlockDense), there trained from random factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from compiler.hookspecs import hookimpl
from compiler.rewriting import Pass
from compiler.structured.linear_graft import RankedGraft
from compiler.structured.linear_layers import Layer
from compiler.structured.structure import Structure, check_blocks, check_ratio, structure_of


@dataclass(frozen=True)
class BlockDense(RankedGraft):
    """Stores weights as a block-diagonal factor and a dense one."""

    name: ClassVar[str] = "block-dense"

    blocks: Annotated[int, "blocks of the first factor, 2 to 16"] = 4
    ratio: Annotated[float, "part of a weight's numbers that both factors have"] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks(self.blocks)
        check_ratio(self.ratio)

    @property
    def kept(self) -> float:
        """As the option says."""
        return self.ratio

    def structure(self, layer: Layer) -> Structure:
        """Several blocks of inputs, one of outputs."""
        return structure_of("block-dense", *layer.shape, self.blocks, self.ratio)


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [BlockDense]
