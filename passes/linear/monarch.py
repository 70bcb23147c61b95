"""linear(x, W)  ->  linear of blocks, a permutation, linear of blocks: a Monarch matrix, the nearest to W

Before:  linear(x, W, b)
After:   every block of inputs through a layer of its own; what these give, dealt out to every block of outputs; these
         again through a layer each. Block (j, i) of W becomes up_ji @ down_ji, all of one rank
Shapes:  x [..., in], W [out, in]; first factor `blocks` times [blocks * rank, in / blocks], second `blocks` times
         [out / blocks, blocks * rank]. Blocks of sizes that do not divide differ by one.
Lossy:   method=plain: the nearest Monarch matrix, in closed form, block by block. With weighing (see `low-rank`) blocks
         of inputs that hang together take turns, and the error falls with every turn. Healing trains both factors; the
         budget gives back half of what a site saved, then the site. Where quantize is to follow, say batched=false:
         then all blocks are linear layers.
Refuses: a rank that saves no numbers or is below 1; weights with fewer inputs or outputs than blocks, that other nodes
         share, that are integers, or not finite; factors.
Source:  Dao et al. 2022, arXiv:2204.00595, definition 3.1, theorem 1 and algorithm 1; its rectangular and wider blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from compiler.hookspecs import hookimpl
from compiler.rewriting import Pass
from compiler.structured.linear_graft import BlockDiagonalGraft, RankedGraft
from compiler.structured.linear_layers import Layer
from compiler.structured.structure import Structure, check_ratio, structure_of


@dataclass(frozen=True)
class Monarch(RankedGraft, BlockDiagonalGraft):
    """Stores weights as two block-diagonal factors with a permutation between them."""

    name: ClassVar[str] = "monarch"

    ratio: Annotated[float, "part of a weight's numbers that both factors have"] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.ratio)

    @property
    def kept(self) -> float:
        """As the option says."""
        return self.ratio

    def structure(self, layer: Layer) -> Structure:
        """As many blocks of outputs as of inputs."""
        return structure_of("monarch", *layer.shape, self.blocks, self.ratio)


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [Monarch]
