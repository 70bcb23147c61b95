"""Runs a Program over all calibration batches in step, stopping before each site: what flows in, stand-ins included.

A site that is quantized late in the graph should make up for what the earlier ones did, so its statistics are those of
inputs that went through their stand-ins (Frantar et al. 2022, arXiv:2210.17323, section 4: there by blocks of layers).

Memory: what later nodes still read, of every batch, and two second moments [features, features] at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from compiler.calibration import ActivationStatistics, Gathering
from compiler.convolution_patches import patches_of
from compiler.lanes import Lane, dead_after

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program
    from compiler.rewriting import PassContext
    from compiler.sites import Site

KNOWN_AT_ONCE = 2
"""Inputs whose statistics are kept: those of a feed-forward block's first layers, and of its last."""


class CalibrationWalk:
    """One run over the calibration batches of `data`. The graph must not be edited while it lasts.

    Ask for `statistics` of sites in graph order, and hand each finished stand-in to `replace` before the next site.
    """

    def __init__(
        self, program: Program, data: Dataset, also_read: Mapping[fx.Node, Iterable[fx.Node]] | None = None
    ) -> None:
        """`also_read` has nodes whose values a node needs beside its arguments, as the inputs of a larger site."""
        self.data = data
        self._batches = data.calibration
        self._lanes = [Lane(program, program.complete(batch)) for batch in data.calibration]
        self._nodes = [node for node in program.graph.nodes if node.op != "output"]
        self._position = {node: index for index, node in enumerate(self._nodes)}
        self._next = 0
        self._dead_after = dead_after(self._nodes, also_read)
        self._stand_ins: dict[fx.Node, tuple[nn.Module, tuple[fx.Node, ...]]] = {}
        self._known: dict[fx.Node, ActivationStatistics | None] = {}

    def statistics(self, site: Site) -> ActivationStatistics | None:
        """Of the first input of `site`, which must not have been computed; None where no data reaches it.

        Of a convolution with one group: of the patches that its kernel sees, [channels * kernel].
        """
        x = site.inputs[0]
        patches = patches_of(site)
        if patches is not None:
            return self._gathered(x, patches)
        if x not in self._known:
            while len(self._known) >= KNOWN_AT_ONCE:
                del self._known[next(iter(self._known))]
            self._known[x] = self._gathered(x)
        return self._known[x]

    def inputs(self, site: Site) -> list[tuple[Any, ...]]:
        """What `site` reads, batch by batch."""
        self._reach(site.inputs)
        return [tuple(lane.env[node] for node in site.inputs) for lane in self._lanes]

    def rows(self, site: Site) -> list[Tensor]:
        """What flows into the first input of `site`, batch by batch: rows [count, features] that are no padding."""
        self._reach(site.inputs[:1])
        rows = []
        for lane, batch in zip(self._lanes, self._batches, strict=True):
            value = lane.env[site.inputs[0]]
            mask, flat = self.data.row_mask(batch, value), value.flatten(0, -2)
            rows.append(flat if mask is None else flat[mask.flatten()])
        return rows

    def replace(self, site: Site, stand_in: nn.Module) -> None:
        """Let `stand_in` compute what `site` gives when the walk comes to it."""
        self._stand_ins[site.output] = stand_in.eval(), site.inputs

    def _reach(self, wanted: Iterable[fx.Node]) -> None:
        for node in wanted:
            while self._next <= self._position[node]:
                self._step(self._nodes[self._next])

    def _gathered(self, x: fx.Node, rows: Callable[[Tensor], Tensor] | None = None) -> ActivationStatistics | None:
        self._reach([x])
        gathering = Gathering()
        for lane, batch in zip(self._lanes, self._batches, strict=True):
            value = lane.env[x]
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2:
                gathering.add(*((value, self.data.row_mask(batch, value)) if rows is None else (rows(value), None)))
        return gathering.finished() if gathering.row_count else None

    @torch.no_grad()
    def _step(self, node: fx.Node) -> None:
        """Compute `node` for every batch and let go of what nothing reads any more."""
        stand_in, inputs = self._stand_ins.pop(node, (None, ()))
        for lane in self._lanes:
            if stand_in is None:
                lane.pass_node(node, self._dead_after[node])
                continue
            lane.env[node] = stand_in(*(lane.env[one] for one in inputs))
            lane.let_go(self._dead_after[node])
        self._next += 1


class UndisturbedWalk(CalibrationWalk):
    """A walk on which nothing is ever replaced: what a site reads in the Program as it is, whoever proposes for it."""

    def replace(self, site: Site, stand_in: nn.Module) -> None:
        """Let the site be."""


def calibration_walk(program: Program, context: PassContext) -> CalibrationWalk:
    """The walk that is under way for several grafts, or else a new one."""
    return CalibrationWalk(program, context.data) if context.walk is None else context.walk
