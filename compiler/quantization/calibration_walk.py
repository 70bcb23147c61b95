"""Runs a Program over all calibration batches in step, stopping before each site: what flows in, stand-ins included.

A site that is quantized late in the graph should make up for what the earlier ones did, so its statistics are those of
inputs that went through their stand-ins (Frantar et al. 2022, arXiv:2210.17323, section 4: there by blocks of layers).

Memory: what later nodes still read, of every batch, and one second moment [features, features] at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from compiler.calibration import ActivationStatistics, Gathering
from compiler.lanes import Lane, dead_after

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program
    from compiler.sites import Site


class CalibrationWalk:
    """One run over the calibration batches of `data`. The graph must not be edited while it lasts.

    Ask for `statistics` of sites in graph order, and hand each finished stand-in to `replace` before the next site.
    """

    def __init__(self, program: Program, data: Dataset) -> None:
        self.data = data
        self._batches = data.calibration
        self._lanes = [Lane(program, program.complete(batch)) for batch in data.calibration]
        self._nodes = [node for node in program.graph.nodes if node.op != "output"]
        self._position = {node: index for index, node in enumerate(self._nodes)}
        self._next = 0
        self._dead_after = dead_after(self._nodes)
        self._stand_ins: dict[fx.Node, tuple[nn.Module, tuple[fx.Node, ...]]] = {}
        self._known: tuple[fx.Node, ActivationStatistics | None] | None = None

    def statistics(self, site: Site) -> ActivationStatistics | None:
        """Of the first input of `site`, which must not have been computed; None where no data reaches it."""
        x = site.inputs[0]
        if self._known is None or self._known[0] is not x:
            self._known = None
            self._known = x, self._gathered(x)
        return self._known[1]

    def replace(self, site: Site, stand_in: nn.Module) -> None:
        """Let `stand_in` compute what `site` gives when the walk comes to it."""
        self._stand_ins[site.output] = stand_in.eval(), site.inputs

    def _gathered(self, x: fx.Node) -> ActivationStatistics | None:
        while self._next <= self._position[x]:
            self._step(self._nodes[self._next])
        gathering = Gathering()
        for lane, batch in zip(self._lanes, self._batches, strict=True):
            value = lane.env[x]
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2:
                gathering.add(value, self.data.row_mask(batch, value))
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
