"""What the grafts that take units out of sites share: options, proposals, a gentler rung."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from torch import fx

from compiler.pruning.narrowing import NarrowingError, narrowed
from compiler.pruning.unit_groups import UnitChoice, UnitGroup, UnitGroups
from compiler.pruning.units import Saliency
from compiler.quantization.calibration_walk import calibration_walk
from compiler.rewriting import Graft, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site, find_sites
from compiler.weight_readers import unusable_weight

if TYPE_CHECKING:
    from compiler.program import Program

HEALING_RATE = 0.03
"""Part of healing's learning rates for weights that are left, which nearly fit, and are small numbers as they are."""


@dataclass(frozen=True)
class UnitGraft(ChoosesLayers, Graft):
    """A graft that takes units out. A `__post_init__` of its own calls this one."""

    unit_name: ClassVar[str]
    """What its units are called, in the plural."""

    ratio: Annotated[float, "part of the units that is left"] = 0.75
    saliency: Annotated[
        Saliency, "who goes: small norms of weights; who moves outputs least; who is made up for best by the others"
    ] = "reconstruction"
    refit: Annotated[bool, "fit the weights behind the units anew, by least squares on calibration data"] = True
    multiple: Annotated[int, "a multiple of so many units is left, as blocks of quantized weights want it"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio:g} is not between 0 and 1")
        if self.multiple < 1:
            raise ValueError(f"multiple={self.multiple} is less than 1")

    @abstractmethod
    def groups(self, site: Site, layers: Mapping[fx.Node, Site]) -> list[UnitGroup] | str:
        """The units of a site, in the order in which they are computed, or why it has none to take out.

        `layers` are the linear and convolution sites of the Program by their nodes.
        """

    @property
    def choice(self) -> UnitChoice:
        """The options that say which units stay."""
        return UnitChoice(self.saliency, self.refit, self.ratio, self.multiple)

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The smaller site, or why there is none."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each site in turn, with the inputs that the smaller ones before it leave it."""
        found = find_sites(program, ("linear", "convolution"))
        layers = {one.output: one for one in found if isinstance(one, Site)}
        walk = calibration_walk(program, context) if context.data.calibration else None
        for site in sites:
            groups = self.groups(site, layers)
            reason = groups if isinstance(groups, str) else self._unfit(groups, program)
            if isinstance(groups, str) or reason is not None:
                yield Refusal(str(reason), site.output.name, site.name, site.kind)
                continue
            try:
                proposal = self._replacement(site, UnitGroups(groups, program, walk), program)
            except NarrowingError as error:
                yield Refusal(f"{error.node.name}: {error.reason}", error.node.name, site.name, site.kind)
                continue
            if context.max_drop is None:
                proposal.gentler = None  # which would keep weights and moments in memory
            yield proposal

    def _unfit(self, groups: Sequence[UnitGroup], program: Program) -> str | None:
        for layer in {layer.output: layer for group in groups for layer in group.layers}.values():
            reason = unusable_weight(program, layer)
            if reason is not None:
                return f"{layer.name}: {reason}"
        if all(self.choice.left(group.count) == group.count for group in groups):
            counts = " and ".join(str(group.count) for group in groups)
            return f"ratio={self.ratio:g} leaves all of its {counts} {self.unit_name}"
        return None

    def _replacement(self, site: Site, units: UnitGroups, program: Program) -> Replacement:
        layers, note = units.narrow(self.choice)
        module = narrowed(program, site.nodes, site.inputs, site.output, layers)
        stand_in = Replacement(module, f"{self.unit_name}: {note}", heal=("*",), rate=HEALING_RATE)
        gentler = replace(self, ratio=(1 + self.ratio) / 2)
        counts = {(self.choice.left(group.count), gentler.choice.left(group.count)) for group in units.groups}
        wholly = all(gentler.choice.left(group.count) == group.count for group in units.groups)
        if not wholly and any(ours < theirs for ours, theirs in counts):
            stand_in.gentler = lambda: gentler._replacement(site, units, program)
        return stand_in
