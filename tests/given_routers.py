"""Routed attention whose routers are random and learned nothing, so that a small model has some of every choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from compiler.passes.attention.route_attention import RouteAttention
from compiler.passes.attention.routing.routed_attention import RoutedAttention, Router
from compiler.program import Program
from compiler.registry import Registry
from compiler.rewriting import Pass, PassContext, Replacement
from compiler.sites import Site


@dataclass(frozen=True)
class GivenRouters(RouteAttention):
    """Routers that nothing was learned for; `offset` is added to their scores."""

    name: ClassVar[str] = "given-routers"
    offset: float = 0.0

    def propose_all(self, sites: Sequence[Site], program: Program, context: PassContext) -> Iterator[Replacement]:
        """One router a site, each with weights of its own."""
        generator = torch.Generator().manual_seed(6)
        for site in sites:
            weight = torch.randn(2 * int(site.bindings["hidden_width"]), generator=generator)
            router = Router(weight, torch.tensor(self.offset))
            yield Replacement(RoutedAttention(site, self.window, self.sinks, self.context, router), "given")


class RegistryWithRouters(Registry):
    """What ships, and `given-routers`."""

    def passes(self) -> dict[str, type[Pass]]:
        """By name."""
        return {**super().passes(), GivenRouters.name: GivenRouters}
