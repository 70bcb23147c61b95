"""A weight as codes in few bits and a low-rank correction: each is fitted to what the other leaves, in turns.

    W  ~  dequantized(codes) + up @ down

The first codes are those of W. Then the correction is the nearest to W - codes, the codes are made of W - correction,
and so on while the weighed error falls; the best pair is kept.

Source: Guo et al. 2023, arXiv:2311.12023, algorithm 1 (LQ-LoRA).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from compiler.ops.quantized_linear import dequantized_weight
from compiler.quantization.modules import BlockQuantizedLinear
from compiler.quantization.stand_ins import BlockForm, LinearWeights, Rounding, block_linear
from compiler.structured.modules import StructuredLinear
from compiler.structured.projection import Factors, project
from compiler.structured.structure import Structure
from compiler.structured.weighing import Weighing

MOST_TURNS = 6
WORTHWHILE = 0.999
"""Of the error before: a turn that leaves more is the last one."""


class LowRankPlusQuantized(nn.Module):
    """y = quantized(x) + correction(x)."""

    def __init__(self, quantized: BlockQuantizedLinear, correction: StructuredLinear) -> None:
        """The bias, where there is one, is that of `quantized`."""
        super().__init__()
        self.quantized, self.correction = quantized, correction

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        y: Tensor = self.quantized(x) + self.correction(x)
        return y


def alternated(
    layer: LinearWeights, form: BlockForm, rounding: Rounding, rank: int, weighing: Weighing
) -> tuple[BlockQuantizedLinear, Factors, float, float]:
    """The codes, the correction, the part of the weighed cost that both leave, and that of the codes alone."""
    weight = layer.weight.double()
    out_features, in_features = weight.shape
    structure = Structure.of(out_features, in_features, 1, 1, rank)
    codes = block_linear(layer, form, rounding)
    rest = weight - dense_codes(codes, in_features)
    alone = weighing.part_lost(weight, weight - rest)
    best: tuple[BlockQuantizedLinear, Factors, float] | None = None
    for _ in range(MOST_TURNS):
        factors = project(rest, structure, weighing)
        correction = factors.dense()
        lost = weighing.part_lost(weight, weight - rest + correction)
        if best is not None and lost >= WORTHWHILE * best[2]:
            break
        best = codes, factors, lost
        codes = block_linear(replace(layer, weight=(weight - correction).float()), form, rounding)
        rest = weight - dense_codes(codes, in_features)
    assert best is not None
    return *best, alone


def dense_codes(layer: BlockQuantizedLinear, in_features: int) -> Tensor:
    """The weight [out, in] that the codes of a layer stand for, in float64."""
    return dequantized_weight(layer.weight, layer.scales, layer.zero_points, layer.bits, in_features).double()
