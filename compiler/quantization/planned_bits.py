"""Chooses the bits of each linear site: how far rounding would move what it gives, and how much the outputs mind.

A site's expected cost at some bits is 1/2 sum over outputs o of P_o e_o H e_o, in nats a token for a language model:
e_o is the error that rounding leaves in the weights of o, H the second moment of the inputs, P_o the mean squared
gradient of the loss at o (compiler.quantization.sensitivity).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compiler.budget.allocation import Offer, allocate
from compiler.ops.quantized_linear import dequantized_weight
from compiler.quantization.calibration_walk import CalibrationWalk
from compiler.quantization.sensitivity import gradient_power
from compiler.quantization.stand_ins import BlockForm, LinearWeights, block_at_least, block_linear, linear_weights

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext
    from compiler.sites import Site


@dataclass(frozen=True)
class PlannedBits:
    """The bits of a site, and what each choice is expected to cost."""

    bits: int
    costs: Mapping[int, float]

    def __str__(self) -> str:
        expected = ", ".join(f"{cost:.2g} at {bits} bits" for bits, cost in sorted(self.costs.items()))
        return f"expected cost {expected}"


def planned_bits(
    sites: Sequence[Site], program: Program, context: PassContext, forms: Mapping[int, BlockForm], average: float
) -> dict[fx.Node, PlannedBits]:
    """Bits for linear sites, by the node of their output: `average` a weight at most, at the least expected cost.

    Without calibration data inputs and gradients count as alike.
    """
    if not sites:
        return {}
    power = gradient_power(program, [site.output for site in sites], context.data, context.seed)
    walk = CalibrationWalk(program, context.data)
    weight_count = 0
    costs: list[dict[int, float]] = []
    offers: list[Offer] = []
    for site in sites:
        context.progress(f"weighing the bits of {site.name}")
        layer = linear_weights(site, program, walk.statistics(site))
        size = layer.weight.numel()
        weight_count += size
        cost = {bits: expected_cost(layer, form, power.get(site.output)) for bits, form in forms.items()}
        offers += [Offer((len(costs),), one, (float(size * bits),)) for bits, one in cost.items()]
        costs.append(cost)
    chosen = allocate(offers, len(sites), [math.floor(average * weight_count)])
    bits = [list(forms)[index % len(forms)] for index in chosen]
    return {site.output: PlannedBits(one, cost) for site, one, cost in zip(sites, bits, costs, strict=True)}


def expected_cost(layer: LinearWeights, form: BlockForm, power: Tensor | None) -> float:
    """What rounding `layer` is expected to add to the divergence of the outputs; power [out] or none, for ones.

    Eight bits are rounded to the nearest here: what they cost is next to nothing either way.
    """
    in_features = layer.weight.shape[1]
    form = replace(form, block_size=min(form.block_size, block_at_least(in_features)))
    made = block_linear(layer, form, "compensated" if form.bits < 8 else "nearest")
    error = dequantized_weight(made.weight, made.scales, made.zero_points, form.bits, in_features) - layer.weight
    moved = error if layer.statistics is None else error @ layer.statistics.second_moment
    by_output = (moved * error).sum(1)
    return 0.5 * float((by_output if power is None else torch.dot(by_output, power)).sum())
