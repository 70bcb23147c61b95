"""Scales of blocks in a byte each, with a number a row in float16: scale = code * row / 4096.

Codes are 0 to 255 where no row has scales of both signs, rows having the sign, otherwise -127 to 127. A scale of its
own costs each block of 32 numbers 16 bits, half a bit a number. Scales of one row are alike, so that a byte says them
to 0.2 % of the row's largest, far below what rounding weights to 4 bits does. All values are exact in float32, so that
codes are found again from values.
Source: Dettmers et al. 2023, arXiv:2305.14314, section 3, double quantization, here by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNIT = 2.0**-12
"""What rows count in, so that those of small weights are normal numbers in float16."""
MOST = 255
MOST_SIGNED = 127
SMALLEST_HALF = 2.0**-14
"""The smallest number that float16 holds with all its digits."""


@dataclass(frozen=True)
class ByteScales:
    """codes uint8 or int8 [rows, blocks], rows float16 [rows]."""

    codes: Tensor
    rows: Tensor

    @property
    def values(self) -> Tensor:
        """float32 [rows, blocks]"""
        return self.codes.float() * self.rows.float()[:, None] * UNIT


def nearest_bytes(scales: Tensor, *, with_zero: bool = False) -> ByteScales | None:
    """The nearest to `scales` [rows, blocks], of which none becomes zero but `with_zero`; None where float16 has no
    number for a row.
    """
    scales = scales.float()
    low, high = scales.amin(1), scales.amax(1)
    signed = bool(((low < 0) & (high > 0)).any())
    most, least = (MOST_SIGNED, -MOST_SIGNED) if signed else (MOST, 0)
    largest = torch.maximum(high, -low)
    rows = torch.where(largest == 0, SMALLEST_HALF, largest / (most * UNIT)).half()
    if not bool((torch.isfinite(rows) & (rows >= SMALLEST_HALF)).all()):
        return None
    if not signed:
        rows = torch.where(low < 0, -rows, rows)
    codes = (scales / (rows.float()[:, None] * UNIT)).round_().clamp_(least, most)
    if not with_zero:
        codes = torch.where(codes == 0, torch.where(signed & (scales < 0), -1.0, 1.0), codes)
    return ByteScales(codes.to(torch.int8 if signed else torch.uint8), rows)


def exact_bytes(scales: Tensor, tolerance: float = 0.0) -> ByteScales | None:
    """Those that are `scales` [rows, blocks], each to a part `tolerance` of itself; None where there are none."""
    found = nearest_bytes(scales, with_zero=True)
    if found is None or not torch.allclose(found.values, scales.float(), rtol=tolerance, atol=0.0):
        return None
    return found
