"""What is replaced as one, and what grafts offer for it.

A part is one site with its weight, or the sites that share one: a tied table and head are replaced together. A place is
what a candidate stands in for: a part, or a block, which covers the parts inside it: a feed-forward block, convolutions
one behind the other, or a residual layer that reads nothing but what it adds to. Where a candidate stands in for a
block, nothing else does for its layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.graph_slices import nodes_between
from compiler.rewriting import BUDGETED_KINDS, Graft, option_values
from compiler.sites import Site, find_sites
from compiler.sites.convolution import match_convolution

if TYPE_CHECKING:
    from compiler.program import Program

FEED_FORWARD, CHAIN, RESIDUAL = "feed-forward", "convolution-chain", "residual-layer"
BLOCKS = (FEED_FORWARD, CHAIN, RESIDUAL)
ROLES = ("gate", "up", "down")


@dataclass(frozen=True)
class Place:
    """Sites that are replaced together, and the positions of the parts that this covers. A shared table is an embedding
    in kind, though a product reads it too.
    """

    sites: tuple[Site, ...]
    covers: tuple[int, ...]

    @property
    def name(self) -> str:
        """The names of its sites. A residual layer of one layer is called as that layer is."""
        names = " and ".join(site.name for site in self.sites)
        return f"{names} (residual layer)" if self.kind == RESIDUAL else names

    @property
    def kind(self) -> str:
        """The kind of site that its candidates are for."""
        kinds = {site.kind for site in self.sites}
        return "embedding" if "embedding" in kinds else self.sites[0].kind

    @property
    def is_part(self) -> bool:
        """Whether it may stay as it is: a block as such is only a way to replace the parts inside it."""
        return len(self.covers) == 1 and self.kind != RESIDUAL


def find_places(program: Program) -> list[Place]:
    """Parts in graph order, then the blocks of parts."""
    found = [one for one in find_sites(program, BUDGETED_KINDS) if isinstance(one, Site)]
    blocks = [site for site in found if site.kind in BLOCKS]
    by_weight: dict[int, list[Site]] = {}
    for site in found:
        if site.kind not in BLOCKS:
            by_weight.setdefault(id(program.weight(site.bindings["weight"])), []).append(site)
    parts = list(by_weight.values())
    parts += [[block] for block in blocks if block.kind == FEED_FORWARD and not _inside(block, parts)]
    places = [Place(tuple(group), (index,)) for index, group in enumerate(parts)]
    for block in blocks:
        covered = _inside(block, parts)
        if covered and [block] not in parts and len(covered) == _size(block, parts) and _is_apart(block):
            places.append(Place((block,), covered))
    return places


def _size(block: Site, parts: Sequence[Sequence[Site]]) -> int:
    """How many parts a block has."""
    if block.kind == CHAIN:
        return sum(isinstance(match_convolution(node), Site) for node in block.nodes)
    if block.kind == RESIDUAL:
        return sum(any(site.output in block.nodes for site in group) for group in parts)
    return len({block.bindings[role] for role in ROLES} - {None})


def _inside(block: Site, parts: Sequence[Sequence[Site]]) -> tuple[int, ...]:
    """The parts that stand inside a block and nowhere else; none of experts, whose layers are no linear sites."""
    return tuple(i for i, group in enumerate(parts) if all(site.output in block.nodes for site in group))


def _is_apart(block: Site) -> bool:
    """Whether a block can be run alone. A layer of attention also reads masks and positions."""
    return block.kind != RESIDUAL or nodes_between(block.output, block.inputs) is not None


@dataclass(frozen=True)
class Choice:
    """A graft with its options, as one of the things that may stand at a place."""

    graft: Graft

    @property
    def text(self) -> str:
        """As in --passes, with the options that are not the default ones."""
        from compiler.options import options_of
        from compiler.recipe import PassSpec

        defaults = {option.name: option.default for option in options_of(type(self.graft))}
        values = {name: value for name, value in option_values(self.graft).items() if value != defaults[name]}
        return str(PassSpec(self.graft.name, values))


def choices_for(kind: str, grafts: Iterable[type[Graft]], given: Iterable[Graft] = ()) -> list[Choice]:
    """What may stand at places of a kind: what `grafts` offer, and those `given` as they are. By name, each once."""
    offered = [one for cls in grafts for one in cls.candidates(kind)]
    offered += [one for one in given if kind in type(one).site_kinds]
    return list({choice.text: choice for choice in map(Choice, offered)}.values())


def offers_anything(cls: type[Graft]) -> bool:
    """Whether a graft offers candidates for any kind of site."""
    return any(tuple(cls.candidates(kind)) for kind in BUDGETED_KINDS)
