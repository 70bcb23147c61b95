"""The block formats of GGUF that the dialect's quantized operators can hold as they are: Q4_0, Q4_1 and Q8_0.

    Q4_0  18 bytes for 32 weights: d float16, 16 bytes q           w = d * (q - 8)
    Q4_1  20 bytes for 32 weights: d, m float16, 16 bytes q        w = d * q + m = d * (q + m / d)
    Q8_0  34 bytes for 32 weights: d float16, 32 int8 q            w = d * q

In four bits, byte i of a block holds weight i in its low half and weight i + 16 in its high half; MatMulNBits wants
weights 2 i and 2 i + 1 there. Source: ggml-quants.c of llama.cpp; com.microsoft MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.ops.quantized_linear import dequantized_weight
from compiler.quantization.packing import pack_codes, pack_zero_points

BLOCK_SIZE = 32
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""The formats that are held, and the bytes of a block."""
WHOLE = 1e-5
"""How far from a whole number, in codes, a zero point may be to count as one: float16 scales divide so exactly."""


@dataclass(frozen=True)
class BlockRows:
    """A matrix in blocks, as regraft::quantized_linear takes it.

    weight uint8 [rows, blocks, 32 * bits / 8], scales float32 [rows, blocks]; zero_points none for the middle code,
    uint8 and packed where all are whole, float32 [rows, blocks] otherwise.
    """

    bits: int
    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None = None

    @property
    def has_whole_zero_points(self) -> bool:
        """Whether integer kernels can read it."""
        return self.zero_points is None or not self.zero_points.is_floating_point()

    def rows(self, order: Tensor) -> BlockRows:
        """The rows in another order: blocks lie within rows, so they stay as they are."""
        points = self.zero_points
        return replace(
            self,
            weight=self.weight[order].contiguous(),
            scales=self.scales[order].contiguous(),
            zero_points=None if points is None else points[order].contiguous(),
        )

    def values(self) -> Tensor:
        """The float32 matrix that it stands for: [rows, columns]."""
        columns = self.scales.shape[1] * BLOCK_SIZE
        return dequantized_weight(self.weight, self.scales, self.zero_points, self.bits, columns)


def read_blocks(data: np.ndarray[Any, Any], form: str) -> BlockRows:
    """A tensor of the file, uint8 [rows, bytes of a row], whose type is `form`."""
    blocks = torch.from_numpy(np.array(data)).reshape(len(data), -1, BLOCK_BYTES[form])
    scales = _halves(blocks, 0)
    if form == "Q8_0":
        return BlockRows(8, blocks[..., 2:] ^ 0x80, scales)  # two's complement to codes around 128
    if form == "Q4_0":
        return BlockRows(4, _reordered(blocks[..., 2:]), scales)
    return _with_minima(_reordered(blocks[..., 4:]), scales, _halves(blocks, 2))


def _halves(blocks: Tensor, start: int) -> Tensor:
    """The float16 numbers at byte `start` of every block, as float32 [rows, blocks]."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).float().squeeze(-1)


def _reordered(halves: Tensor) -> Tensor:
    return pack_codes(torch.cat([halves & 15, halves >> 4], dim=-1), 4)


def _with_minima(weight: Tensor, scales: Tensor, minima: Tensor) -> BlockRows:
    """w = d * q + m with the zero point -m / d; a block of one value has d = 0, and q = 0 everywhere."""
    flat = (scales == 0) & (minima != 0)
    scales = torch.where(flat, minima, scales)
    points = torch.where(flat, -1.0, -minima / torch.where(scales == 0, 1.0, scales))  # [rows, blocks]
    nearest = points.round()
    if bool((((points - nearest).abs() <= WHOLE) & (nearest >= 0) & (nearest <= 15)).all()):
        return BlockRows(4, weight, scales, pack_zero_points(nearest.to(torch.uint8), 4))
    return BlockRows(4, weight, scales, points)
