"""feed-forward  ->  the same with structured layers, taken, healed and given back as one

Before:  down(activation(gate(x)) * up(x)), or down(activation(up(x)))
After:   the same with each layer a structure: kind=low-rank, pivoted-low-rank (low-rank:pivoted=true), monarch,
         block-dense or block-shuffle, as in the passes of these names. The layers of a block are fitted in turn, `down`
         to what structured `gate` and `up` leave
Shapes:  x [..., hidden_size] to the same; layers as in the passes of the kinds.
Lossy:   as the kinds are. The difference to them is the unit: `layers=` and the budget take whole blocks, and healing
         trains all factors of a block on what the block gave, past its activation, before it trains all blocks.
Refuses: experts; activations that are not known; a block one of whose layers the pass of the kind would refuse.
Source:  Wei et al. 2024, arXiv:2406.16450, sections 3.1 and 3.2, where the kinds are compared in feed-forward blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site, find_sites
from compiler.structured.allocation import ALLOCATION_HELP, Allocation
from compiler.structured.feed_forward import assembled, layer_sites
from compiler.structured.linear_layers import Layers, allotted, too_large, unfit
from compiler.structured.modules import HEALING_RATE, learn, settle
from compiler.structured.structure import Kind, Structure, check_blocks, check_ratio, structure_of
from compiler.structured.weighing import Method

OFFERED_RATIOS = (0.9, 0.75, 0.5)


@dataclass(frozen=True)
class StructuredFeedForward(ChoosesLayers, Graft):
    """Feed-forward blocks of structured layers."""

    name: ClassVar[str] = "structured-feed-forward"
    site_kinds: ClassVar[tuple[str, ...]] = ("feed-forward",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    kind: Annotated[Kind, "what the layers become"] = "low-rank"
    method: Annotated[
        Method, "what errors count by: nothing; the inputs; gradients as a Fisher matrix; inputs and gradients"
    ] = "whitened"
    ratio: Annotated[float, "part of a layer's numbers that is left; block-shuffle has its own"] = 0.5
    blocks: Annotated[int, "blocks of a factor, 2 to 16, for all kinds but low ranks"] = 4
    allocation: Annotated[Allocation, ALLOCATION_HELP] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks(self.blocks)
        check_ratio(self.ratio)
        if self.allocation != "uniform" and self.kind == "block-shuffle":
            raise ValueError(f"allocation={self.allocation}: block-shuffle has as many numbers as its blocks say")

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """From little to half of the numbers gone, of those that leave the highest rank."""
        offered = [cls(kind="pivoted-low-rank", ratio=ratio) for ratio in OFFERED_RATIOS]
        return offered if kind in cls.site_kinds else ()

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The structured block, or why there is none."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each block in turn, with the inputs that the blocks before it leave it."""
        linears = [one for one in find_sites(program, ("linear",)) if isinstance(one, Site)]
        parts = {site.output: self._parts(site, linears, program) for site in sites}
        taken = [one for found in parts.values() if not isinstance(found, str) for one in found.values()]
        layers = Layers(taken, program, context, self.method)
        if self.allocation != "uniform" and taken:
            layers.allocate(taken, lambda layer: self.structure(*layer.shape), self.ratio, self.allocation)
        for site in sites:
            found = parts[site.output]
            proposal = found if isinstance(found, str) else self._replacement(site, found, layers)
            if isinstance(proposal, str):
                yield Refusal(proposal, site.output.name, site.name, site.kind)
            else:
                yield proposal

    def _parts(self, site: Site, linears: Sequence[Site], program: Program) -> dict[str, Site] | str:
        """The layers of a block by role, or why it has to stay."""
        found = layer_sites(site, linears)
        if isinstance(found, str):
            return found
        for role, one in found.items():
            sizes = one.bindings["out_features"], one.bindings["in_features"]
            reason = unfit(one, program) or too_large(self.structure(*sizes))
            if reason is not None:
                return f"{role}: {reason}"
        return found

    def structure(self, out_features: int, in_features: int) -> Structure:
        """What a layer becomes."""
        return structure_of(self.kind, out_features, in_features, self.blocks, self.ratio)

    def _replacement(self, site: Site, parts: dict[str, Site], layers: Layers) -> Replacement | str:
        """The block, or why it stays: where all its layers need so much that they do."""
        made: dict[str, nn.Module] = {}
        notes, healed = [], []
        for role, one in parts.items():
            layer = layers.layer(one)
            structure = allotted(self.structure(*layer.shape), layer)
            stays = too_large(structure)
            if stays is not None:
                made[role] = layer.dense()
                notes.append(f"{role}: dense, {stays}")
                continue
            made[role], note = layer.structured(structure)
            layers.replace(one, made[role])
            notes.append(f"{role}: {note}")
            healed.append(f"{role}.*")
        note = "; ".join(notes)
        if not healed:
            return note
        module = assembled(site, made)
        return Replacement(
            module,
            note,
            tuple(healed),
            rate=HEALING_RATE,
            learn=lambda: learn(module),
            settle=lambda: settle(module),
        )


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [StructuredFeedForward]
