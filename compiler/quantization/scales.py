"""Choosing the grid of a row of weights: a scale, and for few bits a zero point, with the least squared error.

Clipping a few extreme weights often costs less than a coarser grid for all the others. The search tries grids from the
full range down and keeps the best for every row (Banner et al. 2019, arXiv:1810.05723, section 3, by search).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from compiler.quantization.byte_scales import SMALLEST_HALF, nearest_bytes

Clip = Literal["mse", "none"]

ZERO_SHIFTS = (0, -1, 1)
"""Zero points to try, around the one that the range of the row gives."""
SMALLEST_SCALE = 2.0**-100
"""For rows of zeros: any scale is right, and this one is a normal float32."""


@dataclass(frozen=True)
class Grid:
    """What codes stand for: value = (code - zero) * scale, codes between `low` and `high`.

    scale and zero [..., 1] hold for the last dim of the weights they were made for. A grid whose steps are not even
    overrides `nearest` and `steps`.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest codes, whole numbers in float32, in the shape of `weight`."""
        return self.nearest(weight / self.scale, self.zero)

    def values(self, codes: Tensor) -> Tensor:
        """What the codes stand for."""
        return self.steps(codes, self.zero) * self.scale

    def nearest(self, quotient: Tensor, zero: Tensor) -> Tensor:
        """The codes nearest to weights over their scales, halves to even. It may overwrite `quotient`."""
        return quotient.round_().add_(zero).clamp_(self.low, self.high)

    def steps(self, codes: Tensor, zero: Tensor) -> Tensor:
        """What the codes stand for, in units of the scale."""
        return codes - zero

    def in_half(self) -> Grid:
        """With scales rounded to float16, which files then hold in half the bytes; as it is where some are too large or
        too small for that.
        """
        rounded = torch.where(self.scale.abs() <= SMALLEST_SCALE, SMALLEST_HALF, self.scale).half().float()
        fits = torch.isfinite(rounded).all() and bool((rounded.abs() >= SMALLEST_HALF).all())
        return replace(self, scale=rounded) if fits else self

    def in_bytes(self) -> Grid:
        """With scales [rows, blocks, 1] rounded to a byte each beside a number a row; in float16 where a row has only
        one block, or float16 no such number.
        """
        held = nearest_bytes(self.scale[..., 0]) if self.scale.shape[1] > 1 else None
        return self.in_half() if held is None else replace(self, scale=held.values[..., None])


def symmetric_grid(weight: Tensor, bits: int, clip: Clip) -> Grid:
    """Signed codes around zero for rows weight [..., n]. The scale is positive; -2 ** (bits - 1) is not used."""
    high = 2 ** (bits - 1) - 1
    extreme = weight.abs().amax(-1, keepdim=True)
    zero = torch.zeros_like(extreme)
    candidates = (Grid(positive(extreme * factor / high), zero, -high, high) for factor in part_factors(bits, clip))
    return least_error_grid(weight, candidates)


def lopsided_grid(weight: Tensor, bits: int, clip: Clip, importance: Tensor | None = None) -> Grid:
    """Unsigned codes with the fixed zero point 2 ** (bits - 1), which kernels take where none is given.

    The side that has one code more goes to the larger extreme of the row, so a scale may be negative. `importance`
    broadcasts to weight: the squared errors are weighted by it.
    """
    middle = 2 ** (bits - 1)
    position = weight.abs().argmax(-1, keepdim=True)
    extreme = weight.gather(-1, position) / -middle
    zero = torch.full_like(extreme, middle)
    candidates = (Grid(_away_from_zero(extreme * f), zero, 0, 2**bits - 1) for f in part_factors(bits, clip))
    return least_error_grid(weight, candidates, importance)


def asymmetric_grid(weight: Tensor, bits: int, clip: Clip, importance: Tensor | None = None) -> Grid:
    """Unsigned codes with a zero point for each row, for weights that are not centred; importance as above."""
    high = 2**bits - 1
    top, bottom = weight.amax(-1, keepdim=True).clamp(min=0), weight.amin(-1, keepdim=True).clamp(max=0)

    def grid(factor: float, shift: int) -> Grid:
        scale = positive((top - bottom) * factor / high)
        return Grid(scale, (torch.round(-bottom * factor / scale) + shift).clamp(0, high), 0, high)

    shifts = ZERO_SHIFTS if clip == "mse" else (0,)
    return least_error_grid(
        weight, (grid(factor, shift) for factor in part_factors(bits, clip) for shift in shifts), importance
    )


def part_factors(bits: int, clip: Clip) -> list[float]:
    """Parts of the full range to try. Few bits gain from harder clipping than many."""
    if clip == "none":
        return [1.0]
    steps, width = (6, 0.03) if bits > 4 else (11, 0.05)
    return [1.0 - width * step for step in range(steps)]


def least_error_grid(weight: Tensor, candidates: Iterable[Grid], importance: Tensor | None = None) -> Grid:
    """Of grids for rows weight [..., n] the one with the least squared error, row by row; importance as above."""
    best: Grid | None = None
    least = torch.empty(0)
    for grid in candidates:
        squares = (grid.values(grid.codes(weight)) - weight).square_()
        error = (squares if importance is None else squares.mul_(importance)).sum(-1, keepdim=True)
        if best is None:
            best, least = grid, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero)
        best = replace(grid, scale=scale, zero=zero)
    assert best is not None
    return best


def positive(scale: Tensor) -> Tensor:
    """Scales of which none is zero."""
    return scale.clamp(min=SMALLEST_SCALE)


def _away_from_zero(scale: Tensor) -> Tensor:
    return torch.where(scale.abs() < SMALLEST_SCALE, torch.full_like(scale, SMALLEST_SCALE), scale)
