"""Grids whose steps are not even: the numbers of a small float, or any others, each with the bits that stand for it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.quantization.scales import Grid


@dataclass(frozen=True)
class Levels:
    """Numbers in ascending order, the bits of each, and the boundaries [count - 1] between them.

    What lies on a boundary goes down. Compared by identity.
    """

    values: Tensor
    patterns: Tensor
    boundaries: Tensor

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def by_pattern(self, bits: int) -> Tensor:
        """What each pattern of `bits` bits stands for: float32 [2 ** bits], zero where there is no such pattern."""
        table = torch.zeros(2**bits)
        table[self.patterns] = self.values
        return table


@dataclass(frozen=True)
class LevelGrid(Grid):
    """Codes that are places in `levels`, all of them with one scale a block; zero is 0."""

    levels: Levels

    def nearest(self, quotient: Tensor, zero: Tensor) -> Tensor:
        """The places of the nearest levels."""
        return torch.bucketize(quotient.contiguous(), self.levels.boundaries).float()

    def steps(self, codes: Tensor, zero: Tensor) -> Tensor:
        """The levels at these places."""
        return self.levels.values[codes.long()]


@functools.cache
def float_levels(exponent_bits: int, mantissa_bits: int, largest: float) -> Levels:
    """The numbers of a float with a sign, a bias of 2 ** (exponent_bits - 1) - 1 and subnormals, up to `largest`.

    Zero has the pattern without a sign. Halves go to the number with an even mantissa, as in IEEE 754.
    """
    bias = 2 ** (exponent_bits - 1) - 1
    magnitudes = []
    for pattern in range(2 ** (exponent_bits + mantissa_bits)):
        exponent, mantissa = divmod(pattern, 2**mantissa_bits)
        fraction = mantissa / 2**mantissa_bits
        number = fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias)
        if number > largest:
            break
        magnitudes.append(number)
    count, sign = len(magnitudes), 2 ** (exponent_bits + mantissa_bits)
    values = torch.tensor([-one for one in reversed(magnitudes[1:])] + magnitudes)
    patterns = torch.tensor([sign + place for place in range(count - 1, 0, -1)] + list(range(count)))
    halves = (values[:-1] + values[1:]) / 2
    upper_is_even = patterns[1:] % 2 == 0
    below = torch.nextafter(halves, torch.full_like(halves, -torch.inf))
    return Levels(values, patterns, torch.where(upper_is_even, below, halves))
