"""What a Program gives with one site replaced, for one site after the other, on the same batches.

Nodes before a site give what they gave without the stand-in: each batch passes them once, and only what follows the
site is computed again. Over all layers of a deep model that is half the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from compiler.lanes import Lane, dead_after

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.sites import Site


class BranchingRun:
    """Batches that wait before a site of `sites`. The graph must not be edited while it lasts."""

    def __init__(self, program: Program, batches: Sequence[tuple[Tensor, ...]], sites: Sequence[Site]) -> None:
        """`sites` in graph order are those that `outputs` may be asked about."""
        self._program = program
        self._nodes = list(program.graph.nodes)
        self._position = {node: index for index, node in enumerate(self._nodes)}
        self._dead_after = dead_after(self._nodes, {site.output: site.inputs for site in sites})
        self._lanes = [Lane(program, program.complete(batch)) for batch in batches]
        self._passed = 0

    def outputs(
        self, site: Site, stand_in: nn.Module, output: int, states: Mapping[str, torch.dtype] = MappingProxyType({})
    ) -> Iterator[Tensor]:
        """Output number `output` of the Program for each batch, with `stand_in` in place of `site`.

        `states` are the dtypes in which it reads states that have another: a first call reads zeros, the same in any.
        Ask about sites in graph order, and take all batches of one before the next.
        """
        stand_in.eval()
        place = self._position[site.output]
        self._pass_all(place)
        nodes = zip(self._program.placeholders(), self._program.inputs, strict=True)
        dtypes = {node: states[spec.name] for node, spec in nodes if spec.name in states}
        for lane in self._lanes:
            yield self._branch(lane, site, stand_in, dtypes, place)[output]

    @torch.no_grad()
    def _pass_all(self, place: int) -> None:
        """Let every batch pass the nodes before `place`."""
        for node in self._nodes[self._passed : place]:
            for lane in self._lanes:
                lane.pass_node(node, self._dead_after[node])
        self._passed = place

    @torch.no_grad()
    def _branch(
        self, lane: Lane, site: Site, stand_in: nn.Module, dtypes: Mapping[fx.Node, torch.dtype], place: int
    ) -> tuple[Tensor, ...]:
        branch = Lane(self._program, ())
        given = [lane.env[node].to(dtypes[node]) if node in dtypes else lane.env[node] for node in site.inputs]
        branch.env = {**lane.env, site.output: stand_in(*given)}
        for node in self._nodes[place + 1 : -1]:
            branch.pass_node(node, self._dead_after[node])
        returned: tuple[Tensor, ...] = branch.run_node(self._nodes[-1])
        return returned
