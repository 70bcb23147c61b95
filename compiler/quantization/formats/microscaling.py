"""What the OCP microscaling formats share: blocks of 32 whose scale is a power of two, stored as its exponent (E8M0).

    scale = 2 ** (byte - 127)          byte 255 is no number and is not used

The specification's own scale is the power of two below the largest magnitude, over that below the element type's
largest number; larger numbers than that type has are clipped. With clip=mse twice that scale is tried too, which clips
nothing.
Scales are not any number, so they are not refitted; healing trains one float scale an output beside them.
Source: OCP Microscaling Formats (MX) Specification v1.0, 2023, sections 5.4 and 6.3.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from compiler.quantization.formats.weight_format import QUANTIZED_LINEAR, WeightFormat
from compiler.quantization.scales import Grid, least_error_grid

BLOCK = 32
EXPONENT_BIAS = 127
SMALLEST, LARGEST = -127, 127
"""Exponents that a byte holds."""


class Microscaling(WeightFormat):
    """Elements whose largest number is below 2 ** (`largest_exponent` + 1)."""

    largest_exponent: ClassVar[int]
    usual_block: ClassVar[int] = BLOCK
    block_sizes: ClassVar[tuple[int, ...] | None] = (BLOCK,)
    learns_rows: ClassVar[bool] = True
    operator: ClassVar[str | None] = QUANTIZED_LINEAR

    @abstractmethod
    def element_grid(self, scale: Tensor) -> Grid:
        """The elements under scales [..., 1]."""

    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        """The scale of the specification, or twice that."""
        _, above = torch.frexp(blocks.abs().amax(-1, keepdim=True))  # the largest is below 2 ** above
        exponent = above - 1 - self.largest_exponent
        candidates = (exponent, exponent + 1) if self.clip == "mse" else (exponent,)
        scales = (torch.exp2(one.clamp(SMALLEST, LARGEST).float()) for one in candidates)
        return least_error_grid(blocks, map(self.element_grid, scales), importance)


def scale_bytes(scale: Tensor) -> Tensor:
    """Powers of two as E8M0 bytes."""
    return (torch.frexp(scale)[1] - 1 + EXPONENT_BIAS).to(torch.uint8)


def from_scale_bytes(stored: Tensor, shift: int = 0) -> Tensor:
    """E8M0 bytes as float32, times 2 ** shift."""
    return torch.pow(2.0, stored.float() + float(shift - EXPONENT_BIAS))
