"""What tests of attention grafts share: the sites of a Program, and the Program with stand-ins in it."""

from __future__ import annotations

from rewrite_checks import context_of

from compiler.grafting import apply_graft
from compiler.program import Program
from compiler.rewriting import Graft, PassResult
from compiler.sites import Site, find_sites


def token_mixers(program: Program) -> list[Site]:
    """The token-mixer sites, in order."""
    return [one for one in find_sites(program, ("token-mixer",)) if isinstance(one, Site)]


def grafted(graft: Graft, program: Program) -> tuple[Program, PassResult]:
    """What the graft makes of the Program, which stays as it is, and what was done."""
    return apply_graft(graft, program, (), context_of(program))
