"""linear(x, W)  ->  quantized_linear(x, codes) + linear(linear(x, down), up): few bits, and what they miss most

Before:  linear(x, W, b)
After:   quantized_linear(x, codes in blocks, scales, zeros, b) + linear(linear(x, down), up), where up @ down is of a
         low rank; codes and correction are fitted in turns, each to what the other leaves
Shapes:  x [..., in], W [out, in], codes as in `quantize`, down [rank, in], up [out, rank].
Lossy:   rounding makes up for its own errors, and the correction takes the directions of what is left that count most
         by `method` (see `low-rank`). Healing trains the correction and leaves the codes; the budget gives a site 8
         bits, then gives it back. `quantize:bits=8` after it stores the correction in fewer bits.
Refuses: sites that take as many bytes as before; weights that other nodes share, that are integers, or not finite;
         factors of structured layers.
Source:  Guo et al. 2023, arXiv:2311.12023, algorithm 1 and section 3.3 (LQ-LoRA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from compiler.hookspecs import hookimpl
from compiler.program import storage_bytes
from compiler.quantization.scales import Clip
from compiler.quantization.stand_ins import BlockForm, Rounding, block_at_least
from compiler.rewriting import Pass, Replacement
from compiler.sites import Refusal
from compiler.structured import low_rank_plus_quantized
from compiler.structured.linear_graft import LinearGraft
from compiler.structured.linear_layers import Layer
from compiler.structured.modules import StructuredLinear


@dataclass(frozen=True)
class LowRankPlusQuantized(LinearGraft):
    """Stores weights in few bits, with a low-rank correction beside them."""

    name: ClassVar[str] = "low-rank-plus-quantized"

    bits: Annotated[Literal[8, 4, 2], "bits of a code"] = 4
    weight_rank: Annotated[int, "rank of the correction"] = 16
    group: Annotated[Literal[16, 32, 64, 128, 256], "inputs that share a scale"] = 32
    symmetric: Annotated[bool | None, "no zero points; none: at 8 bits"] = None
    clip: Annotated[Clip, "mse: clip extreme weights where that lessens the error"] = "mse"
    rounding: Annotated[Rounding, "compensated: later weights make up for the rounding of earlier ones"] = "compensated"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_rank < 1:
            raise ValueError(f"weight_rank={self.weight_rank} is less than 1")

    def stand_in(self, layer: Layer) -> Replacement | str:
        """Codes and a correction, or why not."""
        return self._rung(layer, self.bits)

    def _rung(self, layer: Layer, bits: int) -> Replacement | str:
        weights, shape = layer.weights, layer.shape
        if self.weight_rank >= min(shape):
            return f"a correction of rank {self.weight_rank} is no less than its weight of {shape[0]} x {shape[1]}"
        form = BlockForm(bits, min(self.group, block_at_least(shape[1])), self.clip, self.symmetric)
        codes, factors, lost, alone = low_rank_plus_quantized.alternated(
            weights, form, self.rounding, self.weight_rank, layer.weighing
        )
        correction = StructuredLinear(factors, None, layer.dtype)
        module = low_rank_plus_quantized.LowRankPlusQuantized(codes, correction)
        dense = storage_bytes([weights.weight.to(layer.dtype)])
        stored = storage_bytes([*codes.buffers(), *correction.parameters()])
        if stored >= dense:
            return f"codes and correction take {stored} bytes, no fewer than the {dense} of the weight"
        note = f"{bits}-bit codes and rank {self.weight_rank}, {layer.said(lost)}, {alone:.2%} without the correction"
        gentler = (lambda: self._gentler(layer)) if bits < 8 else None
        return Replacement(
            module, note, heal=("correction.*",), learn=correction.learn, settle=correction.settle, gentler=gentler
        )

    def _gentler(self, layer: Layer) -> Replacement | Refusal:
        rung = self._rung(layer, 8)
        return Refusal(rung) if isinstance(rung, str) else rung


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [LowRankPlusQuantized]
