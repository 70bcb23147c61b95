"""The structured weight nearest to a dense one, in closed form where there is one.

One block: with D the roots of the rows' weights and moment = R R^T, the best weight of rank r is D^-1 U U^T D W, where
U are the leading left singular vectors of D W R: by Eckart and Young the truncated decomposition of D W R, of which
the factor R comes off without an inverse.

Several blocks: without weighing, and wherever the inputs of different blocks are uncorrelated, each block alone. Where
they are correlated that is the start, and then blocks of inputs take turns: with all others fixed, what block i should
be is M_i + E H_i H_ii^-1 (M its present value, E the error, H the moment), weighed by H_ii: one block again. No turn
makes the error larger. Blocks of outputs do not depend on each other.

Source: Eckart and Young 1936; Dao et al. 2022, arXiv:2204.00595, theorem 1 and algorithm 1 (each block alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.structured.structure import Structure
from compiler.structured.weighing import Weighing, root_of

MOST_TURNS = 12
WORTHWHILE = 1e-3
"""Part of the error that a round of turns must take away for another one to follow."""
RIDGE = 1e-9
"""Added to the moment of a block before it is divided by, as a part of its mean."""


@dataclass(frozen=True)
class Factors:
    """A structured weight: up[j][i] [out_j, rank] and down[j][i] [rank, in_i]."""

    structure: Structure
    up: tuple[tuple[Tensor, ...], ...]
    down: tuple[tuple[Tensor, ...], ...]

    def dense(self) -> Tensor:
        """The weight [out, in] that they make."""
        rows = zip(self.up, self.down, strict=True)
        return torch.cat(
            [torch.cat([up @ down for up, down in zip(ups, downs, strict=True)], 1) for ups, downs in rows]
        )

    def first(self) -> list[Tensor]:
        """The first factor's blocks, one for each block of inputs: [out_blocks * rank, in_i]."""
        return [torch.cat([row[index] for row in self.down]) for index in range(len(self.structure.in_sizes))]

    def second(self) -> list[Tensor]:
        """The second factor's blocks, one for each block of outputs: [out_j, in_blocks * rank]."""
        return [torch.cat(row, 1) for row in self.up]


def project(weight: Tensor, structure: Structure, weighing: Weighing | None = None) -> Factors:
    """The factors nearest to weight [out, in], in float64. Both factors of a block have equally long rows."""
    weight = weight.detach().double() if not weight.is_complex() else weight.detach()
    weighing = weighing or Weighing()
    roots = weighing.row_roots
    moment = None if weighing.moment is None else weighing.moment.double()
    blocks = _Blocks(weight, structure, roots, moment)
    for index in range(len(structure.in_sizes)):
        blocks.fit(index, weight[:, structure.in_slices[index]])
    if moment is not None and len(structure.in_sizes) > 1:
        _take_turns(blocks, weighing)
    return blocks.factors()


def leading_vectors(matrix: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The leading left singular vectors [rows, count] and all singular values, largest first.

    From the eigenvectors of the smaller of the two products with its transpose: several times faster than a singular
    value decomposition. Values below 1e-8 of the largest are not told from zero.
    """
    rows, columns = matrix.shape
    wide = rows <= columns
    values, vectors = torch.linalg.eigh(matrix @ matrix.mH if wide else matrix.mH @ matrix)
    values, vectors = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)[:, :count]
    if not wide:
        vectors = torch.linalg.qr(matrix @ vectors).Q
    return vectors, values


def weighed_singular_values(weight: Tensor, weighing: Weighing, structure: Structure) -> Tensor:
    """Of D W R, largest first: their squares beyond a rank add up to what that rank loses.

    Of several blocks, each as if alone, the root mean square of their first, second, ... values.
    """
    weight, roots = weight.detach().double(), weighing.row_roots
    scaled = weight if roots is None else roots[:, None] * weight
    moment = None if weighing.moment is None else weighing.moment.double()
    powers = []
    for columns in structure.in_slices:
        moved = scaled[:, columns] if moment is None else scaled[:, columns] @ root_of(moment[columns, columns])
        powers += [leading_vectors(moved[rows], 0)[1].square() for rows in structure.out_slices]
    count = min(map(len, powers))
    return torch.stack([one[:count] for one in powers]).mean(0).sqrt()


class _Blocks:
    """The blocks while they are being fitted."""

    def __init__(self, weight: Tensor, structure: Structure, roots: Tensor | None, moment: Tensor | None) -> None:
        self.weight, self.structure, self.roots, self.moment = weight, structure, roots, moment
        self.found = torch.zeros_like(weight)
        parts = structure.in_slices
        self.own_roots = [None if moment is None else root_of(moment[part, part]) for part in parts]
        empty = weight.new_empty(0, 0)
        self.up = [[empty] * len(parts) for _ in structure.out_sizes]
        self.down = [[empty] * len(parts) for _ in structure.out_sizes]

    def fit(self, index: int, target: Tensor) -> None:
        """Let the blocks of inputs `index` come as near to target [out, in_i] as their rank allows."""
        columns = self.structure.in_slices[index]
        for row, rows in enumerate(self.structure.out_slices):
            roots = None if self.roots is None else self.roots[rows, None]
            scaled = target[rows] if roots is None else roots * target[rows]
            own_root = self.own_roots[index]
            vectors, _ = leading_vectors(scaled if own_root is None else scaled @ own_root, self.structure.rank)
            down = vectors.mH @ scaled
            up = vectors if roots is None else vectors / roots
            self.found[rows, columns] = up @ down
            self.up[row][index], self.down[row][index] = _balanced(up, down)

    def wanted(self, index: int) -> Tensor:
        """What the blocks of inputs `index` should be while all others stay as they are."""
        assert self.moment is not None
        columns = self.structure.in_slices[index]
        own = self.moment[columns, columns].clone()
        own.diagonal().add_(RIDGE * own.diagonal().mean().clamp(min=1e-30))
        pull = (self.weight - self.found) @ self.moment[:, columns]
        target: Tensor = self.found[:, columns] + torch.linalg.solve(own, pull, left=False)
        return target

    def factors(self) -> Factors:
        return Factors(self.structure, tuple(map(tuple, self.up)), tuple(map(tuple, self.down)))


def _take_turns(blocks: _Blocks, weighing: Weighing) -> None:
    cost = weighing.cost(blocks.weight - blocks.found)
    for _ in range(MOST_TURNS):
        for index in range(len(blocks.structure.in_sizes)):
            blocks.fit(index, blocks.wanted(index))
        before, cost = cost, weighing.cost(blocks.weight - blocks.found)
        if cost >= (1 - WORTHWHILE) * before:
            return


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, each direction as long in one factor as in the other: neither rounds or learns worse."""
    lengths = up.norm(dim=0), down.norm(dim=1)
    scale = (lengths[1] / lengths[0].clamp(min=1e-300)).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return up * scale, down / scale[:, None]
