"""The stand-ins that a budget chose, made, as a graft that puts them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.rewriting import BUDGETED_KINDS, Graft, PassContext, Replacement
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.program import Program

NAME = "budget"
UNCHANGED = "as it is: the budget has a better use for what a stand-in would save"

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
        return self.made.get(site_key(site)) or Refusal(UNCHANGED, site.output.name, site.name, site.kind)

    @classmethod
    def candidates(cls, kind: str) -> tuple[Graft, ...]:
        """None: it is what chooses."""
        return ()


def site_key(site: Site) -> Key:
    """What a site is called in every copy of its Program."""
    return site.kind, site.output.name
