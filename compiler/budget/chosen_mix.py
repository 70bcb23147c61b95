"""The stand-ins that a budget chose, made, as a graft that puts them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from compiler.budget.places import RESIDUAL, Choice, Place
from compiler.quantization.calibration_walk import CalibrationWalk
from compiler.rewriting import BUDGETED_KINDS, Graft, PassContext, Replacement
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.program import Program

NAME = "budget"
UNCHANGED = "as it is: the budget has a better use for what a stand-in would save"
STAYS_WHOLE = "it stays: nothing was offered for it as a whole, or the budget has a better use"

Key = tuple[str, str]
"""Kind of a site and the name of its output: the same in a Program and its copies."""


@dataclass(frozen=True)
class ChosenMix(Graft):
    """Stand-ins that have been made, by site."""

    name: ClassVar[str] = NAME
    site_kinds: ClassVar[tuple[str, ...]] = BUDGETED_KINDS

    made: Mapping[Key, Replacement | Refusal]

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """What was made for the site."""
        reason = STAYS_WHOLE if site.kind == RESIDUAL else UNCHANGED
        return self.made.get(site_key(site)) or Refusal(reason, site.output.name, site.name, site.kind)

    @classmethod
    def candidates(cls, kind: str) -> tuple[Graft, ...]:
        """None: it is what chooses."""
        return ()


def site_key(site: Site) -> Key:
    """What a site is called in every copy of its Program."""
    return site.kind, site.output.name


def propose_chosen(
    chosen: Sequence[tuple[Place, Choice]], program: Program, context: PassContext
) -> dict[Key, Replacement | Refusal]:
    """Stand-ins for the chosen places in graph order, each fitted to inputs that went through those before it."""
    position = {node: index for index, node in enumerate(program.graph.nodes)}
    order = sorted(chosen, key=lambda one: position[one[0].sites[0].output])
    inside = {site.output: site.inputs for place, _ in order for site in place.sites}
    walk = CalibrationWalk(program, context.data, inside)
    made: dict[Key, Replacement | Refusal] = {}
    for index, (place, choice) in enumerate(order, 1):
        context.progress(f"budget: {place.name}, {index} of {len(order)}: {choice.text}")
        shared = replace(context, walk=walk if len(place.sites) == 1 else None)
        proposals = list(choice.graft.propose_all(place.sites, program, shared))
        if refused := next((one for one in proposals if isinstance(one, Refusal)), None):
            proposals = [refused for _ in proposals]
        for site, proposal in zip(place.sites, proposals, strict=True):
            if isinstance(proposal, Replacement):
                proposal.note = f"{choice.text}: {proposal.note}"
                walk.replace(site, proposal.module)
            made[site_key(site)] = proposal
    return made
