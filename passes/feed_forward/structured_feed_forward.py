"""feed-forward  ->  the same with structured layers, taken, healed and given back as one

Before:  down(activation(gate(x)) * up(x)), or down(activation(up(x)))
After:   the same with each layer a structure: kind=low-rank, monarch, block-dense or block-shuffle, as in the passes of
         these names. The layers of a block are fitted in turn, `down` to what structured `gate` and `up` leave
Shapes:  x [..., hidden_size] to the same; layers as in the passes of the kinds.
Lossy:   as the kinds are. The difference to them is the unit: `layers=` and the budget take whole blocks, and healing
         trains all factors of a block on what the block gave, past its activation, before it trains all blocks.
Refuses: experts; activations that are not known; a block one of whose layers the pass of the kind would refuse.
Source:  Wei et al. 2024, arXiv:2406.16450, sections 3.1 and 3.2, where the kinds are compared in feed-forward blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site, find_sites
from compiler.structured.feed_forward import assembled, layer_sites
from compiler.structured.linear_layers import Layers, too_large, unfit
from compiler.structured.modules import learn, settle
from compiler.structured.structure import Kind, Structure, check_blocks, check_ratio, structure_of
from compiler.structured.weighing import Method


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
    blocks: Annotated[int, "blocks of a factor, 2 to 16, for all kinds but low-rank"] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks(self.blocks)
        check_ratio(self.ratio)

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
        for site in sites:
            found = parts[site.output]
            if isinstance(found, str):
                yield Refusal(found, site.output.name, site.name, site.kind)
                continue
            yield self._replacement(site, found, layers)

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

    def _replacement(self, site: Site, parts: dict[str, Site], layers: Layers) -> Replacement:
        made: dict[str, nn.Module] = {}
        notes = []
        for role, one in parts.items():
            layer = layers.layer(one)
            sizes = one.bindings["out_features"], one.bindings["in_features"]
            made[role], note = layer.structured(self.structure(*sizes))
            layers.replace(one, made[role])
            notes.append(f"{role}: {note}")
        module = assembled(site, made)
        note = "; ".join(notes)
        return Replacement(module, note, heal=("*",), learn=lambda: learn(module), settle=lambda: settle(module))


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [StructuredFeedForward]
