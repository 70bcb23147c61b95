"""A weight cut into blocks, each the product of two thin factors: low-rank, Monarch, block-dense and block-shuffle.

    W [out, in], cut into blocks W_ji [out_j, in_i]:     W_ji = up_ji @ down_ji,  all of one rank

    y_j = sum over i of up_ji (down_ji x_i)              first factor: block-diagonal, x_i -> all down_ji x_i
                                                         second factor: block-diagonal, after a permutation

    low-rank        one block
    pivoted         one block, stored as some of its columns, the pivots, and the others as sums of them: of one factor
                    rank ** 2 numbers are an identity that nobody needs to store (pivoted_linear.py)
    block-dense     several blocks of inputs, one of outputs
    Monarch         as many blocks of inputs as of outputs
    block-shuffle   the same, as wide between the factors as the narrower side of the weight

A permutation of all inputs or all outputs around these would cost a transposition in every call; the order of what a
trained layer reads and gives is as good as another.

Source: Dao et al. 2022, arXiv:2204.00595, definition 3.1 and appendix (Monarch: of rank 1 where a square matrix has as
many blocks as a block is wide; rectangular ones); Wei et al. 2024, arXiv:2406.16450, section 3.1 (LowRank, BlockDense,
BlockShuffle: Monarch with another order of what is between the factors); Zhao et al. 2025, arXiv:2501.19090, section 3
(pivots).
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

FEWEST_BLOCKS, MOST_BLOCKS = 2, 16
Kind = Literal["low-rank", "pivoted-low-rank", "monarch", "block-dense", "block-shuffle"]


@dataclass(frozen=True)
class Structure:
    """Sizes of the blocks of outputs and of inputs, and the rank of every block of the weight."""

    out_sizes: tuple[int, ...]
    in_sizes: tuple[int, ...]
    rank: int
    pivoted: bool = False

    @classmethod
    def of(
        cls, out_features: int, in_features: int, out_blocks: int, in_blocks: int, rank: int, *, pivoted: bool = False
    ) -> Structure:
        """Blocks of sizes that differ by one at most."""
        return cls(even_sizes(out_features, out_blocks), even_sizes(in_features, in_blocks), rank, pivoted)

    @property
    def parameter_count(self) -> int:
        """Numbers in both factors."""
        return self.count_at(self.rank)

    def count_at(self, rank: int) -> int:
        """Numbers in both factors of another rank."""
        by_rank = len(self.out_sizes) * sum(self.in_sizes) + len(self.in_sizes) * sum(self.out_sizes)
        return rank * (by_rank - rank if self.pivoted else by_rank)

    @property
    def dense_count(self) -> int:
        """Numbers in the weight."""
        return sum(self.out_sizes) * sum(self.in_sizes)

    @property
    def out_slices(self) -> tuple[slice, ...]:
        """Where each block of outputs stands."""
        return _slices(self.out_sizes)

    @property
    def in_slices(self) -> tuple[slice, ...]:
        """Where each block of inputs stands."""
        return _slices(self.in_sizes)

    def at_ratio(self, ratio: float) -> Structure:
        """The same blocks with the largest rank at which both factors have `ratio` of the weight's numbers at most."""
        allowed = ratio * self.dense_count + 1e-6
        rank = bisect(range(1, min(sum(self.out_sizes), sum(self.in_sizes)) + 1), allowed, key=self.count_at)
        return replace(self, rank=rank)

    def __str__(self) -> str:
        blocks = len(self.out_sizes), len(self.in_sizes)
        share = f"{self.parameter_count / self.dense_count:.0%} of the numbers"
        return (
            f"rank {self.rank}, {'pivoted, ' if self.pivoted else ''}{share}"
            if blocks == (1, 1)
            else f"{blocks[0]} x {blocks[1]} blocks of rank {self.rank}, {share}"
        )


def structure_of(kind: Kind, out_features: int, in_features: int, blocks: int, ratio: float) -> Structure:
    """What a weight becomes: `ratio` of its numbers at most, which the blocks alone say of block-shuffle."""
    if kind == "block-shuffle":
        return shuffled(out_features, in_features, blocks)
    in_blocks = blocks if kind in ("monarch", "block-dense") else 1
    out_blocks = blocks if kind == "monarch" else 1
    pivoted = kind == "pivoted-low-rank"
    return Structure.of(out_features, in_features, out_blocks, in_blocks, rank=1, pivoted=pivoted).at_ratio(ratio)


def shuffled(out_features: int, in_features: int, blocks: int) -> Structure:
    """Two block-diagonal factors, about as wide between them as the narrower side: every block of one gets as many
    numbers of every block of the other.
    """
    return Structure.of(out_features, in_features, blocks, blocks, rank=min(out_features, in_features) // blocks**2)


def check_blocks(blocks: int) -> None:
    """Raises ValueError for a number of blocks that no pass takes."""
    if not FEWEST_BLOCKS <= blocks <= MOST_BLOCKS:
        raise ValueError(f"blocks={blocks} is not from {FEWEST_BLOCKS} to {MOST_BLOCKS}")


def check_ratio(ratio: float) -> None:
    """Raises ValueError for a part of a weight's numbers that is none, or all."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio:g} is not between 0 and 1")


def even_sizes(size: int, count: int) -> tuple[int, ...]:
    """`size` in `count` parts that differ by one at most, the larger ones first."""
    whole, more = divmod(size, count)
    return tuple(whole + (index < more) for index in range(count))


def _slices(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0)))
