"""Structured pruning against masks: the small Program beside the dense one whose missing units reach nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lowered_program import LoweredProgram
from rewrite_checks import assert_near, context_of, other_size
from torch import fx

import compiler.pruning.unit_graft as unit_graft
from compiler.grafting import apply_graft
from compiler.program import Program
from compiler.pruning.narrowing import NarrowLayer
from compiler.pruning.unit_graft import UnitGraft
from compiler.rewriting import PassResult
from compiler.sites import Site, find_sites

Layers = Mapping[fx.Node, NarrowLayer]
Reads = Callable[[Site, Layers], Mapping[fx.Node, list[int]]]
"""For each layer of a site that reads units: the inputs that are left of it."""
TOLERANCE = 1e-5
"""Of the largest output."""


def pruned(graft: UnitGraft, program: Program, monkeypatch: pytest.MonkeyPatch) -> tuple[Program, PassResult, Layers]:
    """The pruned Program, what was done, and the layers that were chosen, by their nodes' names in `program`."""
    chosen: dict[fx.Node, NarrowLayer] = {}
    narrowed = unit_graft.narrowed

    def record(*given: Any) -> fx.GraphModule:
        chosen.update(given[-1])
        return narrowed(*given)

    monkeypatch.setattr(unit_graft, "narrowed", record)
    after, result = apply_graft(graft, program, (), context_of(program))
    by_name = {node.name: node for node in program.graph.nodes}
    return after, result, {by_name[node.name]: layer for node, layer in chosen.items()}


def masked(program: Program, graft: UnitGraft, layers: Layers, reads: Reads) -> Program:
    """`program` with zeros in the columns of units that are missing and the new numbers in the others: what is missing
    is computed and reaches nothing.
    """
    found = [one for one in find_sites(program, ("linear", "convolution")) if isinstance(one, Site)]
    stored = {one.output: one.bindings for one in found}
    columns: dict[fx.Node, list[int]] = {}
    for site in find_sites(program, graft.site_kinds):
        if isinstance(site, Site) and site.output in layers:
            columns |= reads(site, layers)
    dense = program.copy()
    for node, inputs in columns.items():
        bindings, layer = stored[node], layers[node]
        weight = program.weight(bindings["weight"]).detach()
        transposed = bindings.get("weight_transposed", False)
        wide = torch.zeros_like(weight.T if transposed else weight)
        outputs = list(range(len(wide))) if layer.outputs is None else list(layer.outputs)
        part = wide[outputs]
        part[:, inputs] = layer.weight
        wide[outputs] = part
        dense.set_weight(bindings["weight"], wide.T.contiguous() if transposed else wide)
    return dense


def assert_pruned_is_masked(
    graft: UnitGraft, program: Program, reads: Reads, monkeypatch: pytest.MonkeyPatch, folder: Path | None = None
) -> tuple[Program, PassResult]:
    """Both give the same at the size that was traced and at another, and ONNX Runtime gives it too."""
    after, result, layers = pruned(graft, program, monkeypatch)
    assert result.changed, result.refusals
    dense = masked(program, graft, layers, reads)
    examples = (program.example_inputs, other_size(program))
    for example in examples:
        for ours, theirs in zip(after.run(*example), dense.run(*example), strict=True):
            assert_near(ours, theirs, TOLERANCE)
    outputs = (one.run(*examples[0]) for one in (after, program))
    moved = [float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in zip(*outputs, strict=True)]
    assert max(moved) > 10 * TOLERANCE, "nothing was taken out"
    assert numbers(after) < numbers(program)
    if folder is not None:
        lowered = LoweredProgram(after, folder / "lowered")
        for example in examples:
            largest = max(float(one.abs().max()) for one in after.run(*example))
            assert lowered.largest_error(*example) <= TOLERANCE * largest
    return after, result


def numbers(program: Program) -> int:
    """How many weights there are."""
    return sum(one.numel() for one in program.weights().values())


def neurons(site: Site, layers: Layers) -> dict[fx.Node, list[int]]:
    """What the readers of a site read: the last layer of a block, all but the first of a chain, what squeezes."""
    inside = [node for node in site.nodes if node in layers]
    if site.kind == "convolution-chain":
        by_name = {node.name: node for node in inside}
        links = zip(pairwise(site.bindings["layers"]), site.bindings["gates"], strict=True)
        return {
            by_name[reader]: list(layers[by_name[before]].outputs or ())
            for (before, behind), gates in links
            for reader in (behind, *(squeeze for squeeze, _ in gates))
        }
    (up,) = [node for node in inside if str(site.bindings["up"]) in _weights(node)]
    start, stop = site.bindings["up_rows"]
    return {site.output: [one - start for one in layers[up].outputs or () if start <= one < stop]}


def _weights(node: fx.Node) -> set[str]:
    return {str(one.target) for source in node.all_input_nodes for one in (source, *source.all_input_nodes)}


def heads(site: Site, layers: Layers) -> dict[fx.Node, list[int]]:
    """The output projection reads the queries' heads side by side."""
    sizes = site.bindings
    (query,) = [node for node in site.nodes if node.name == sizes["query"]]
    start, width = sizes["query_start"], sizes["head_count"] * sizes["head_dim"]
    return {site.output: [one - start for one in layers[query].outputs or () if start <= one < start + width]}
