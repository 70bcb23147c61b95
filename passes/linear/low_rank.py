"""linear(x, W)  ->  linear(linear(x, down), up): a weight of a lower rank, which is the nearest one that data knows of

Before:  linear(x, W, b)
After:   linear(linear(x, down), up, b), where up @ down is the weight of that rank that loses least: of W itself
         (method=plain), of what the layer gives on calibration data (whitened), of W by its Fisher information
         (fisher), of what the layer gives by how much the loss minds it (whitened-fisher). With pivoted=true the same
         product in fewer numbers: some columns of the weight, the pivots, and what makes the others of them
Shapes:  x [..., in], W [out, in], down [rank, in], up [out, rank]; pivoted rank * (in + out - rank) numbers in all.
Lossy:   the directions beyond the rank are gone. The rank is that which leaves `ratio` of the weight's numbers, or
         `weight_rank`, or what keeps `energy` of what the method counts by. Healing trains both factors; the budget
         gives back half of what a site saved, then the site. Quantize after it: both factors are linear layers.
Refuses: a rank that saves no numbers; weights that other nodes share, that are integers, or not finite; factors.
Source:  Wang et al. 2024, arXiv:2403.07378, section 3.1 (whitened, SVD-LLM); Hsu et al. 2022, arXiv:2207.00112 (fisher,
         FWSVD), by rows and columns as in Guo et al. 2023, arXiv:2311.12023, section 3.3; Zhao et al. 2025,
         arXiv:2501.19090, section 3 (pivoted, PIFA).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from compiler.hookspecs import hookimpl
from compiler.rewriting import Graft, Pass
from compiler.structured.linear_graft import RankedGraft
from compiler.structured.linear_layers import Layer
from compiler.structured.projection import weighed_singular_values
from compiler.structured.structure import Structure

DEFAULT_RATIO = 0.5
OFFERED_RATIOS = (0.9, 0.75, 0.5)


@dataclass(frozen=True)
class LowRank(RankedGraft):
    """Stores weights as two thin factors."""

    name: ClassVar[str] = "low-rank"

    ratio: Annotated[float | None, "part of a weight's numbers that both factors have; none: 0.5"] = None
    weight_rank: Annotated[int | None, "the same rank for every site, in the place of ratio"] = None
    energy: Annotated[float | None, "part of what the method counts by that the rank keeps, in the place of ratio"] = (
        None
    )
    pivoted: Annotated[bool, "store some columns of the product, and how the others follow: a higher rank as small"] = (
        False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {
            name: value for name in ("ratio", "weight_rank", "energy") if (value := getattr(self, name)) is not None
        }
        if len(given) > 1:
            raise ValueError(f"{' and '.join(f'{name}={value:g}' for name, value in given.items())}: give one of them")
        if self.weight_rank is not None and self.weight_rank < 1:
            raise ValueError(f"weight_rank={self.weight_rank} is less than 1")
        for name in ("ratio", "energy"):
            if name in given and not 0 < given[name] < 1:
                raise ValueError(f"{name}={given[name]:g} is not between 0 and 1")
        if self.allocation != "uniform" and not given.keys() <= {"ratio"}:
            raise ValueError(f"allocation={self.allocation} shares out the numbers that ratio leaves: give no other")

    @property
    def kept(self) -> float:
        """As the option says, or the default one."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """From little to half of the numbers gone, of those that leave the highest rank."""
        return [cls(ratio=ratio, pivoted=True) for ratio in OFFERED_RATIOS] if kind in cls.site_kinds else ()

    def structure(self, layer: Layer) -> Structure:
        """One block, of the rank that the options say."""
        weight = layer.weights.weight
        whole = Structure.of(*layer.shape, 1, 1, rank=1, pivoted=self.pivoted)
        if self.weight_rank is not None:
            return replace(whole, rank=self.weight_rank)
        if self.energy is None:
            return whole.at_ratio(self.kept)
        power = weighed_singular_values(weight, layer.weighing, whole).square().cumsum(0)
        return replace(whole, rank=int((power < self.energy * power[-1]).sum()) + 1)


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [LowRank]
