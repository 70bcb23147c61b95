"""Layers of a Program on their way to structured ones: what of them a graft needs, in graph order.

Each layer is fitted to the inputs that the stand-ins before it leave it, as when weights are rounded
(compiler.quantization.calibration_walk), and by how much gradients mind its outputs, where a method asks for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from compiler.quantization.calibration_walk import CalibrationWalk, calibration_walk
from compiler.quantization.compensation import damped
from compiler.quantization.stand_ins import LinearWeights, linear_weights
from compiler.structured.allocation import Allocation, Spectrum, allocated_ranks
from compiler.structured.fisher import fisher_sums
from compiler.structured.modules import FACTOR, FactoredLinear, StructuredLinear
from compiler.structured.pivoted_linear import PivotedLinear
from compiler.structured.projection import project, weighed_singular_values
from compiler.structured.structure import Structure
from compiler.structured.weighing import Method, Weighing
from compiler.weight_readers import unusable_weight

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext
    from compiler.sites import Site


@dataclass(frozen=True)
class Layer:
    """A linear layer's weights, what an error in them counts, and the dtype that they are stored in."""

    weights: LinearWeights
    weighing: Weighing
    dtype: torch.dtype
    unweighed: bool
    """Whether its method found no data to weigh errors by."""
    rank: int | None = None
    """What an allocation gave it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        out_features, in_features = self.weights.weight.shape
        return out_features, in_features

    @property
    def fitted_to_outputs(self) -> bool:
        """Whether what is nearest to it is so in what it gives: training it alone finds nothing better."""
        return self.weights.statistics is not None and self.weighing.moment is not None

    def structured(self, structure: Structure, batched: bool | None = None) -> tuple[FactoredLinear, str]:
        """The nearest layer of this structure, and what to say of it; `batched` as the module takes it."""
        factors = project(self.weights.weight, structure, self.weighing)
        lost = self.weighing.part_lost(self.weights.weight, factors.dense())
        bias, dtype = self.weights.bias, self.dtype
        pivoted = structure.pivoted
        module = PivotedLinear(factors, bias, dtype) if pivoted else StructuredLinear(factors, bias, dtype, batched)
        return module, f"{structure}, {self.said(lost)}"

    def dense(self) -> nn.Module:
        """The layer as it is."""
        out_features, in_features = self.shape
        bias = self.weights.bias
        linear = nn.Linear(in_features, out_features, bias is not None, dtype=self.dtype)
        stored = {"weight": self.weights.weight} if bias is None else {"weight": self.weights.weight, "bias": bias}
        linear.load_state_dict(stored)
        return linear

    def said(self, lost: float) -> str:
        """What a stand-in that leaves this part of the cost has lost."""
        blind = ", not weighed for want of calibration data" if self.unweighed else ""
        return f"error {lost:.2%}{blind}"


class Layers:
    """The linear layers that `sites` are, one after the other."""

    def __init__(self, sites: Sequence[Site], program: Program, context: PassContext, method: Method) -> None:
        self._program, self._data, self._method = program, context.data, method
        self._ranks: dict[fx.Node, int] = {}
        self._walk = calibration_walk(program, context) if method in ("whitened", "whitened-fisher") else None
        by_gradients = method in ("fisher", "whitened-fisher")
        self._fisher = fisher_sums(program, sites, context.data, context.seed) if by_gradients else {}

    def allocate(
        self, sites: Sequence[Site], structure: Callable[[Layer], Structure], ratio: float, allocation: Allocation
    ) -> None:
        """Let every layer of `sites` have a rank, so that all keep `ratio` of their numbers.

        By what flows into them while none is replaced yet; `structure` says what each becomes, but for the rank.
        """
        walk = None if self._walk is None else CalibrationWalk(self._program, self._data)
        spectra = []
        for site in sites:
            layer = self._layer(site, walk)
            blocks = structure(layer)
            values = weighed_singular_values(layer.weights.weight, layer.weighing, blocks)
            spectra.append(Spectrum(values, blocks))
        ranks = allocated_ranks(spectra, ratio, allocation)
        self._ranks = {site.output: rank for site, rank in zip(sites, ranks, strict=True)}

    def layer(self, site: Site) -> Layer:
        """The layer at a site. Ask in graph order."""
        return replace(self._layer(site, self._walk), rank=self._ranks.get(site.output))

    def _layer(self, site: Site, walk: CalibrationWalk | None) -> Layer:
        statistics = None if walk is None else walk.statistics(site)
        weights = linear_weights(site, self._program, statistics)
        sums = self._fisher.get(site.output)
        moment = None if statistics is None else damped(statistics.second_moment, statistics.row_count)
        weighing = Weighing(moment=moment)
        if self._method == "fisher" and sums is not None:
            weighing = sums.weighing()
        elif sums is not None:
            weighing = Weighing(sums.rows(), moment)
        unweighed = self._method != "plain" and weighing.is_plain
        dtype = self._program.weight(site.bindings["weight"]).dtype
        return Layer(weights, weighing, dtype, unweighed)

    def replace(self, site: Site, stand_in: nn.Module) -> None:
        """Let later layers be fitted to what `stand_in` gives."""
        if self._walk is not None:
            self._walk.replace(site, stand_in)


def unfit(site: Site, program: Program) -> str | None:
    """Why no structure stands in for a linear site, whatever its size."""
    if FACTOR.search(site.bindings["weight"]):
        return "its weight is a factor of a structured layer already"
    return unusable_weight(program, site)


def allotted(structure: Structure, layer: Layer) -> Structure:
    """`structure` with the rank that an allocation gave the layer, where there was one."""
    return structure if layer.rank is None else replace(structure, rank=layer.rank)


def too_large(structure: Structure) -> str | None:
    """Why a structure is not worth its numbers."""
    blocks = len(structure.out_sizes), len(structure.in_sizes)
    shape = sum(structure.out_sizes), sum(structure.in_sizes)
    if min(structure.out_sizes) < 1 or min(structure.in_sizes) < 1:
        return f"a weight of {shape[0]} x {shape[1]} has no {blocks[0]} x {blocks[1]} blocks"
    if structure.rank < 1:
        return f"there are too few numbers for blocks of rank 1 in a weight of {shape[0]} x {shape[1]}"
    if structure.parameter_count >= structure.dense_count:
        return f"{structure.parameter_count} numbers are no fewer than the {structure.dense_count} of the dense weight"
    return None
