"""Sites cut out of a Program: each as a module of its own, and the shapes that it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compiler.budget.stand_alone import Shape
from compiler.evidence.payload import typical_batch
from compiler.graph_slices import graph_slice, nodes_between
from compiler.lanes import Lane, dead_after
from compiler.sites import Site

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program

Shapes = dict[tuple[str, fx.Node], tuple[Shape, ...]]
"""By kind and output of a site, the shapes of its inputs. A block and its last layer have one output."""


class SiteCopies:
    """Copies of `sites` as they are in `program`, with its weights."""

    def __init__(self, program: Program, data: Dataset, sites: Sequence[Site]) -> None:
        self._program, self._data, self._sites = program, data, sites
        self._made: dict[tuple[str, fx.Node], fx.GraphModule] = {}

    def of(self, site: Site) -> fx.GraphModule:
        """The site as a module from its inputs to a tuple of its output."""
        key = site.kind, site.output
        if key not in self._made:
            between = nodes_between(site.output, site.inputs)
            if between is None:
                raise ValueError(f"{site.name} reads inputs of the model beside its own")
            module = self._program.graph_module
            self._made[key] = graph_slice(module, site.inputs, between, [site.output])
        return self._made[key]

    def shapes(self, typical: bool) -> tuple[Shapes, Shapes]:
        """On the example inputs, which FLOPs are counted on, and on what is timed; the first twice unless `typical`."""
        return self._on_example_inputs, self._on_typical_inputs if typical else self._on_example_inputs

    @cached_property
    def _on_example_inputs(self) -> Shapes:
        return self._shapes(self._program.example_inputs)

    @cached_property
    def _on_typical_inputs(self) -> Shapes:
        return self._shapes(typical_inputs(self._program, self._data))

    @torch.no_grad()
    def _shapes(self, inputs: Sequence[Tensor]) -> Shapes:
        read = {node for site in self._sites for node in site.inputs}
        lane, nodes = Lane(self._program, inputs), list(self._program.graph.nodes)
        dead, shapes = dead_after(nodes), {}
        for node in nodes[:-1]:
            lane.pass_node(node, ())
            value = lane.env[node]
            if node in read and isinstance(value, Tensor):
                shapes[node] = tuple(value.shape), value.dtype
            lane.let_go(dead[node])
        return {(site.kind, site.output): tuple(shapes[node] for node in site.inputs) for site in self._sites}


def typical_inputs(program: Program, data: Dataset) -> tuple[Tensor, ...]:
    """One sample of a usual size, as all inputs of `program`."""
    batch = typical_batch(program, data)
    return batch if len(batch) == len(program.inputs) else program.complete(batch)
