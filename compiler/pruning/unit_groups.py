"""Units of a site on their way out: which stay, what makes up for the others, and the layers that are left.

A unit is a hidden neuron, a channel between two convolutions, or the heads of a group of attention: some outputs of the
layers that produce it, and some columns of those that read it. Nothing else may see it, so it can go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compiler.pruning.narrowing import LayerModule, NarrowLayer
from compiler.pruning.units import (
    Saliency,
    columns_of,
    kept_by_reconstruction,
    kept_by_score,
    part_lost,
    refitted,
    removal_errors,
    unit_powers,
)
from compiler.quantization.compensation import damped
from compiler.quantization.stand_ins import linear_weights
from compiler.sites.names import shared_path

if TYPE_CHECKING:
    from compiler.calibration import ActivationStatistics
    from compiler.program import Program
    from compiler.quantization.calibration_walk import CalibrationWalk
    from compiler.sites import Site


@dataclass(frozen=True)
class Producer:
    """A layer that produces units: unit u is its outputs start + u * per_unit to start + (u + 1) * per_unit."""

    layer: Site
    start: int
    per_unit: int

    def outputs(self, units: Tensor) -> Tensor:
        """The outputs that are these units."""
        return self.start + columns_of(units, self.per_unit)


@dataclass(frozen=True)
class Reader:
    """A layer that reads units, each of which is `inner` columns of its weight flattened to two dims."""

    layer: Site
    inner: int


@dataclass(frozen=True)
class UnitGroup:
    """Units that are alike: `count` of them, each `inner` columns of the weight of `consumer` flattened to two dims.

    What `consumer` makes of the units decides which stay. The layers of `also` read them before it does.
    """

    count: int
    inner: int
    producers: tuple[Producer, ...]
    consumer: Site
    also: tuple[Reader, ...] = ()

    @property
    def layers(self) -> tuple[Site, ...]:
        """All that take part."""
        readers = (reader.layer for reader in self.readers)
        return (*(producer.layer for producer in self.producers), *readers)

    @property
    def readers(self) -> tuple[Reader, ...]:
        """All that read the units, in graph order."""
        return (*self.also, Reader(self.consumer, self.inner))


@dataclass(frozen=True)
class UnitChoice:
    """How units are chosen, whether what reads them is fitted anew, and how many of so many are left."""

    saliency: Saliency
    refit: bool
    ratio: float
    multiple: int

    def left(self, count: int) -> int:
        """How many of `count` units."""
        wanted = max(round(self.ratio * count), 1)
        return min(-(-wanted // self.multiple) * self.multiple, count)


class UnitGroups:
    """The groups of one site, in the order in which the graph computes them, with what flows into their readers."""

    def __init__(self, groups: Sequence[UnitGroup], program: Program, walk: CalibrationWalk | None) -> None:
        self.groups, self._program, self._walk = groups, program, walk
        self._sites = {layer.output: layer for group in groups for layer in group.layers}
        self._known: dict[fx.Node, ActivationStatistics | None] = {}
        shared = shared_path(site.bindings["weight"].rpartition(".")[0] for site in self._sites.values())
        self._prefix = f"{shared}." if shared else ""

    def narrow(self, choice: UnitChoice) -> tuple[dict[fx.Node, NarrowLayer], str]:
        """The layers that are left, and what to say of them."""
        weights = {node: matrix_of(site, self._program) for node, site in self._sites.items()}
        left_out: dict[fx.Node, list[Tensor]] = {node: [] for node in self._sites}
        notes = []
        for group in self.groups:
            first_time = group.consumer.output not in self._known
            known = {reader.layer.output: self._statistics(reader.layer) for reader in group.readers}
            units = kept_units(choice, group, weights, known[group.consumer.output])
            for reader in group.readers:
                node = reader.layer.output
                weights[node], note = narrow_columns(choice, reader, weights[node], units, known[node])
            notes.append(f"{len(units)} of {group.count}{note}")
            if first_time:
                self._let_others_see(group, weights[group.consumer.output], units)
            gone = torch.ones(group.count, dtype=torch.bool)
            gone[units] = False
            for producer in group.producers:
                left_out[producer.layer.output].append(producer.outputs(gone.nonzero().flatten()))
        return {node: self._layer(node, weights[node], left_out[node]) for node in self._sites}, ", ".join(notes)

    def _statistics(self, consumer: Site) -> ActivationStatistics | None:
        if consumer.output not in self._known:
            self._known[consumer.output] = None if self._walk is None else self._walk.statistics(consumer)
        return self._known[consumer.output]

    def _let_others_see(self, group: UnitGroup, narrow: Tensor, units: Tensor) -> None:
        """Let what is calibrated later read what is left: the same numbers with zeros in the place of units."""
        if self._walk is None:
            return
        site = group.consumer
        dense = narrow.new_zeros(len(narrow), group.count * group.inner)
        dense[:, columns_of(units, group.inner)] = narrow
        self._walk.replace(site, LayerModule(site.output, self._shaped(site, dense), self._bias(site)))

    def _layer(self, node: fx.Node, weight: Tensor, left_out: Sequence[Tensor]) -> NarrowLayer:
        site = self._sites[node]
        name = site.bindings["weight"].rpartition(".")[0].removeprefix(self._prefix).replace(".", "_") or "layer"
        bias = self._bias(site)
        if not left_out:
            return NarrowLayer(name, self._shaped(site, weight), bias)
        stays = torch.ones(len(weight), dtype=torch.bool)
        stays[torch.cat(list(left_out))] = False
        outputs = tuple(int(one) for one in stays.nonzero().flatten())
        return NarrowLayer(name, self._shaped(site, weight[stays]), None if bias is None else bias[stays], outputs)

    def _bias(self, site: Site) -> Tensor | None:
        name = site.bindings["bias"]
        return None if name is None else self._program.weight(name).detach()

    def _shaped(self, site: Site, matrix: Tensor) -> Tensor:
        """A weight flattened to two dims as the layer stores it."""
        stored = self._program.weight(site.bindings["weight"])
        kernel = stored.shape[2:] if site.kind == "convolution" else ()
        return matrix.to(stored.dtype).reshape(len(matrix), -1, *kernel)


def matrix_of(site: Site, program: Program) -> Tensor:
    """The weight of a linear site [out, in], or of a convolution [out, in * kernel], in float32."""
    if site.kind == "linear":
        return linear_weights(site, program, None).weight
    return program.weight(site.bindings["weight"]).detach().float().flatten(1)


def kept_units(
    choice: UnitChoice, group: UnitGroup, weights: Mapping[fx.Node, Tensor], known: ActivationStatistics | None
) -> Tensor:
    """The units that stay, ascending. By magnitude where nothing is known of what flows in."""
    weight, count = weights[group.consumer.output], choice.left(group.count)
    if known is None or choice.saliency == "magnitude":
        scores = unit_powers(weight, group.inner)
        for producer in group.producers:
            rows = weights[producer.layer.output][producer.outputs(torch.arange(group.count))]
            scores = scores * unit_powers(rows.T, producer.per_unit)
        return kept_by_score(scores, count)
    if choice.saliency == "activations":
        return kept_by_score(removal_errors(weight, known.second_moment, group.inner), count)
    return kept_by_reconstruction(weight, damped(known.second_moment, known.row_count), group.inner, count)


def narrow_columns(
    choice: UnitChoice, reader: Reader, weight: Tensor, units: Tensor, known: ActivationStatistics | None
) -> tuple[Tensor, str]:
    """The columns of these units, fitted anew where that is wanted, and what to say of it."""
    left = weight[:, columns_of(units, reader.inner)]
    if known is None:
        return left, ", chosen by magnitude for want of calibration data" if choice.saliency != "magnitude" else ""
    if choice.refit:
        left = refitted(weight, damped(known.second_moment, known.row_count), units, reader.inner)
    return left.to(weight.dtype), f" (error {part_lost(weight, left, known.second_moment, units, reader.inner):.2%})"
