"""Short ways to find the sites of a small module."""

from __future__ import annotations

from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.passes.canonicalize import Canonicalize
from compiler.program import Program
from compiler.sites import Refusal, Site, find_sites


def canonical(module: nn.Module, **inputs: Tensor) -> Program:
    """The module, captured with a dynamic batch and canonicalized."""
    program = captured(module.eval(), **inputs)
    Canonicalize().rewrite(program, context_of(program))
    return program


def the_site(program: Program, kind: str) -> Site:
    """The one site of a kind; fails when there is another or a refusal."""
    (site,) = find_sites(program, (kind,))
    assert isinstance(site, Site), site
    return site


def the_refusal(program: Program, kind: str) -> Refusal:
    """The one refusal of a kind; fails when there is a site as well."""
    (refusal,) = find_sites(program, (kind,))
    assert isinstance(refusal, Refusal), refusal
    assert refusal.kind == kind
    assert refusal.name
    assert refusal.node in {node.name for node in program.graph.nodes}
    return refusal
