"""What the grafts of linear layers by structured ones share: which sites they take, data, rungs and healing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from compiler.evidence.measured_gain import check_tokens, does_not_pay
from compiler.rewriting import Graft, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site
from compiler.structured.allocation import ALLOCATION_HELP, Allocation
from compiler.structured.linear_layers import Layer, Layers, allotted, too_large, unfit
from compiler.structured.modules import HEALING_RATE, has_even_blocks
from compiler.structured.structure import Structure, check_blocks
from compiler.structured.weighing import Method

if TYPE_CHECKING:
    from compiler.program import Program


@dataclass(frozen=True)
class LinearGraft(ChoosesLayers, Graft):
    """A graft that fits a stand-in to one linear layer after the other. A `__post_init__` of its own calls this one."""

    site_kinds: ClassVar[tuple[str, ...]] = ("linear",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    method: Annotated[
        Method, "what errors count by: nothing; the inputs; gradients as a Fisher matrix; inputs and gradients"
    ] = "whitened"
    pays_at: Annotated[
        int | None, "leave layers as they are whose stand-in, timed alone, is no faster at so many tokens a call"
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tokens("pays_at", self.pays_at)

    @abstractmethod
    def stand_in(self, layer: Layer) -> Replacement | str:
        """What stands in for a layer, or why nothing does."""

    def prepare(self, sites: Sequence[Site], layers: Layers) -> None:
        """Called before the first stand-in is made, with those sites that can have one."""

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The stand-in for one site."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each site in turn, with the inputs that the stand-ins before it leave it."""
        layers = Layers(sites, program, context, self.method)
        self.prepare([site for site in sites if unfit(site, program) is None], layers)
        for site in sites:
            proposal = unfit(site, program) or self.stand_in(layers.layer(site))
            if isinstance(proposal, Replacement):
                proposal = does_not_pay(program, site, proposal, self.pays_at, context) or proposal
            if isinstance(proposal, str):
                yield Refusal(proposal, site.output.name, site.name, site.kind)
                continue
            layers.replace(site, proposal.module)
            if context.max_drop is None:
                proposal.gentler = None  # which would keep the weight and its moment in memory
            yield proposal


@dataclass(frozen=True)
class StructuredGraft(LinearGraft):
    """A graft whose stand-ins are structured weights and nothing else."""

    @abstractmethod
    def structure(self, layer: Layer) -> Structure:
        """The structure that a layer gets. It may be refused for its size."""

    @property
    def in_batches(self) -> bool | None:
        """Whether a factor is one batched product; None where that is faster."""
        return None

    def gentler(self, structure: Structure) -> Structure:
        """What the budget tries where this structure costs too much: half of what was saved."""
        return structure.at_ratio((1 + structure.parameter_count / structure.dense_count) / 2)

    def stand_in(self, layer: Layer) -> Replacement | str:
        """The nearest structured layer, and the gentler one."""
        structure = allotted(self.structure(layer), layer)
        reason = too_large(structure)
        if reason is None and self.in_batches and not has_even_blocks(structure):
            reason = "batched=true: its blocks are not all of one size"
        if reason is not None:
            return reason
        first, gentler = self._rung(layer, structure), self.gentler(structure)
        if structure.parameter_count < gentler.parameter_count and too_large(gentler) is None:
            first.gentler = lambda: self._rung(layer, gentler)
        return first

    def _rung(self, layer: Layer, structure: Structure) -> Replacement:
        module, note = layer.structured(structure, self.in_batches and has_even_blocks(structure))
        alone = not layer.fitted_to_outputs
        return Replacement(
            module, note, heal=("*",), alone=alone, rate=HEALING_RATE, learn=module.learn, settle=module.settle
        )


@dataclass(frozen=True)
class RankedGraft(StructuredGraft):
    """A structured graft whose ranks follow from the part of all numbers that is to be left."""

    allocation: Annotated[Allocation, ALLOCATION_HELP] = "uniform"

    @property
    @abstractmethod
    def kept(self) -> float:
        """Part of the numbers of all sites that is left."""

    def prepare(self, sites: Sequence[Site], layers: Layers) -> None:
        """Give every site its rank."""
        if self.allocation != "uniform" and sites:
            layers.allocate(sites, self.structure, self.kept, self.allocation)


@dataclass(frozen=True)
class BlockDiagonalGraft(StructuredGraft):
    """A structured graft both of whose factors are block-diagonal, with as many blocks."""

    blocks: Annotated[int, "blocks of either factor, 2 to 16"] = 4
    batched: Annotated[
        bool | None, "one batched product a factor, which quantize leaves as it is; none: from 8 even blocks on"
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks(self.blocks)

    @property
    def in_batches(self) -> bool | None:
        """As the option says."""
        return self.batched
