"""convolution(x, W)  ->  convolution(convolution(x, first), second): two thin ones, the nearest that data knows of

Before:  convolution(x, W, b) of a kernel of any size in 1, 2 or 3 dims
After:   convolution(convolution(x, first), second, b). The kernel's dims are shared out between both: rows to one and
         columns to the other, or all to one and channels to the other, whichever loses least
Shapes:  x [batch, in, *spatial], W [out, in, *kernel], first [rank, in, *its dims], second [out, rank, *its dims].
Lossy:   the directions beyond the rank are gone. The rank is the most that leaves `ratio` of the weight's numbers and
         multiplications. Errors count by how far they move what the layer gives on calibration data (method=whitened)
         or alike (plain). Healing trains both factors; the budget gives back half of what was saved, then the site.
Refuses: several groups; ranks below 1; weights that other nodes share, that are integers, or not finite; factors.
Source:  Jaderberg et al. 2014, arXiv:1405.3866, section 2.2; Zhang et al. 2015, arXiv:1505.06798, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from compiler.convolution_patches import patches_of
from compiler.hookspecs import hookimpl
from compiler.quantization.calibration_walk import CalibrationWalk, calibration_walk
from compiler.quantization.compensation import damped
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site
from compiler.structured.separable_convolution import (
    FACTOR,
    KernelSplit,
    SeparableConvolution,
    kernel_splits,
    nearest_factors,
)
from compiler.weight_readers import unusable_weight

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.program import Program

OFFERED_RATIOS = (0.75, 0.5, 0.25)
HEALING_RATE = 0.03
"""Part of healing's learning rates for factors, which nearly fit and are small numbers."""


@dataclass(frozen=True)
class LowRankConvolution(ChoosesLayers, Graft):
    """Stores kernels as two thin factors."""

    name: ClassVar[str] = "low-rank-convolution"
    site_kinds: ClassVar[tuple[str, ...]] = ("convolution",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse")

    ratio: Annotated[float, "part of a weight's numbers, and of its multiplications, that both have at most"] = 0.5
    method: Annotated[
        Literal["plain", "whitened"], "what errors count by: nothing; how far they move what the layer gives"
    ] = "whitened"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio:g} is not between 0 and 1")

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """From little to three quarters of the multiplications gone."""
        return [cls(ratio=ratio) for ratio in OFFERED_RATIOS] if kind in cls.site_kinds else ()

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """Two convolutions for one site."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each site in turn, with the inputs that the stand-ins before it leave it."""
        walk = calibration_walk(program, context) if self.method == "whitened" else None
        for site in sites:
            proposal = _unfit(site, program) or self._stand_in(site, program, _moment(site, walk))
            if isinstance(proposal, str):
                yield Refusal(proposal, site.output.name, site.name, site.kind)
                continue
            if walk is not None:
                walk.replace(site, proposal.module)
            if context.max_drop is None:
                proposal.gentler = None  # which would keep the weight and its moment in memory
            yield proposal

    def _stand_in(self, site: Site, program: Program, moment: Tensor | None) -> Replacement | str:
        """The nearest two kernels, and what the budget tries where they cost too much: half of what was saved."""
        first = self._rung(site, program, moment, self.ratio)
        if isinstance(first, str):
            return first
        gentler = (1 + self.ratio) / 2
        splits = list(_splits(site))
        if max(split.rank_at(gentler) for split in splits) > max(split.rank_at(self.ratio) for split in splits):
            first.gentler = lambda: _replaced(self._rung(site, program, moment, gentler))
        return first

    def _rung(self, site: Site, program: Program, moment: Tensor | None, ratio: float) -> Replacement | str:
        sizes, weight = site.bindings, program.weight(site.bindings["weight"])
        ranked = [(split, rank) for split in _splits(site) if (rank := split.rank_at(ratio)) > 0]
        if not ranked:
            return f"ratio={ratio:g} leaves no rank in a weight of {' x '.join(map(str, weight.shape))}"
        found = [nearest_factors(weight.detach(), split, rank, moment) for split, rank in ranked]
        best = min(found, key=lambda factors: factors.lost)
        bias = None if sizes["bias"] is None else program.weight(sizes["bias"]).detach()
        module = SeparableConvolution(best, bias, sizes["padding"], sizes["dilation"], weight.dtype)
        kernels = [" x ".join(map(str, one.kernel_size)) for one in (module.first_kernel, module.second_kernel)]
        blind = ", not weighed: no data tell its patches" if self.method == "whitened" and moment is None else ""
        note = f"kernels {kernels[0]}, then {kernels[1]}, rank {len(best.first)}, error {best.lost:.2%}{blind}"
        return Replacement(module, note, heal=("*",), alone=moment is None, rate=HEALING_RATE)


def _splits(site: Site) -> Iterator[KernelSplit]:
    sizes = site.bindings
    return kernel_splits(sizes["out_channels"], sizes["in_channels"], sizes["kernel"], sizes["stride"])


def _moment(site: Site, walk: CalibrationWalk | None) -> Tensor | None:
    """Of the patches that the kernel of a site sees; None where no data says, or it has too many dims."""
    statistics = walk.statistics(site) if walk is not None and patches_of(site) is not None else None
    return None if statistics is None else damped(statistics.second_moment, statistics.row_count)


def _replaced(proposal: Replacement | str) -> Replacement:
    assert isinstance(proposal, Replacement), proposal  # more numbers leave a rank where fewer did
    return proposal


def _unfit(site: Site, program: Program) -> str | None:
    if site.bindings["groups"] != 1:
        return f"its channels are in {site.bindings['groups']} groups"
    if FACTOR.search(site.bindings["weight"]):
        return "its weight is a factor already"
    return unusable_weight(program, site)


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [LowRankConvolution]
