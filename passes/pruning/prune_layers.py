"""x + f(x)  ->  x: whole residual layers go, those that change least what goes through them

Before:  x' = x + attention(norm(x));  y = x' + feed_forward(norm(x'))
After:   y = x
Shapes:  x [..., width] or [batch, channels, ...], y the same.
Lossy:   what the layer added is gone. `ratio` is the part of the layers that stays; those of least influence go, which
         is 1 - cos(x, y) on calibration data. With layers=3+5 those named go; with layers=auto-0.25 a quarter, by the
         recall and divergence that each costs alone. The budget gives back layers; --budget takes out those that read
         nothing but x. Nothing is left to heal in them: heal what stands around, or what other grafts put there.
Refuses: layers of more influence than those that go. Layers that change the width or the size are none.
Source:  Men et al. 2024, arXiv:2403.03853 (ShortGPT), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from compiler.errors import CompilerError
from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.pruning.influence import block_influence
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers, LayerChoice
from compiler.sites import Refusal, Site

DEFAULT_RATIO = 0.75


@dataclass(frozen=True)
class PruneLayers(ChoosesLayers, Graft):
    """Takes whole residual layers out."""

    name: ClassVar[str] = "prune-layers"
    site_kinds: ClassVar[tuple[str, ...]] = ("residual-layer",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse")
    healing_weight: ClassVar[float] = 0.0

    ratio: Annotated[
        float | None, "part of the layers that is left, 0 if all go; none: 0.75, or all that layers= names or ranks go"
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio:g} is not from 0 to below 1")

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """The layer itself, gone."""
        return (cls(ratio=0.0),) if kind in cls.site_kinds else ()

    @property
    def takes_all(self) -> bool:
        """Whether every layer that `layers` leaves goes."""
        if self.ratio == 0:
            return True
        choice = LayerChoice.parse(self.layers)
        names_some = choice.share is not None or any(term != "all" for term in choice.wanted)
        return self.ratio is None and names_some

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """Nothing in the place of the layer."""
        return Replacement(nn.Identity(), "nothing")

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Nothing in the place of the layers of least influence. Raises CompilerError without data to tell them by."""
        if self.takes_all:
            yield from super().propose_all(sites, program, context)
            return
        if not context.data.calibration:
            hint = "Give some with --data, or name layers: layers=3+5."
            raise CompilerError(f"running {self.name}", "there is no data to tell the layers' influence by", hint)
        influence = block_influence(program, sites, context.data)
        order = sorted(sites, key=lambda site: influence[site.output])
        gone = round((1 - (DEFAULT_RATIO if self.ratio is None else self.ratio)) * len(sites))
        for site in sites:
            place = order.index(site)
            said = f"influence {influence[site.output]:.3g}, place {place + 1} of {len(order)}"
            if place < gone:
                yield Replacement(nn.Identity(), f"nothing: {said}")
            else:
                yield Refusal(f"{said}: the first {gone} go", site.output.name, site.name, site.kind)


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [PruneLayers]
