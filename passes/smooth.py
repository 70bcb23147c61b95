"""linear(x, W)  ->  linear(x / s, W * s): activations that are easier to quantize, for somewhat harder weights

Before:  x = layer_norm(h, g, c);  linear(x, W1);  linear(x, W2)
After:   x = layer_norm(h, g / s, c / s);  linear(x, W1 * s);  linear(x, W2 * s)
         where x has other users, or nothing before it takes the scale:  mul(x, 1 / s) in front of the linears
Shapes:  x [..., in], s [in], W [out, in].
Exact:   up to rounding: 1e-6 in float32, 1e-2 in bfloat16.
Refuses: sites whose inputs calibration data does not reach; weights that other nodes share; inputs that are not finite;
         inputs that smoothing does not ease; with fold-only, inputs whose scale nothing takes.
Source:  Xiao et al. 2022, arXiv:2211.10438, eq. 4: s = max|x| ** alpha / max|W| ** (1 - alpha), with the mean over
         samples of max|x|, and alpha chosen for each input where it is left open.

The scale goes into the weight and bias of a norm, or into the rows of a linear whose output is read directly or as one
factor of a gate, when only these linear sites read the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from compiler.calibration import ActivationStatistics, activation_statistics
from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.quantization.channel_scaling import (
    InputGroup,
    input_groups,
    mark_weights,
    producer_of,
    scale_inputs,
    stacked_weights,
)
from compiler.quantization.smoothing import WORTHWHILE, WORTHWHILE_PRODUCT, smoothing_scales
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal, Site

MARK = "_smoothed"
"""Ends the name of every weight that a scale went into, so that a second run leaves it as it is."""


@dataclass(frozen=True)
class Smooth(Rewrite):
    """Moves magnitude from activations to weights, channel by channel."""

    name: ClassVar[str] = "smooth"

    alpha: Annotated[float | None, "part of the difficulty that moves, 0 to 1; none: chosen for each input"] = None
    multiply: Annotated[bool, "multiply by 1/s where nothing before the input takes the scale"] = True

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha={self.alpha:g} is not between 0 and 1")

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Smooth the inputs of linear sites in place. `changed` names the sites."""
        groups, refusals = input_groups(program, MARK)
        statistics = activation_statistics(program, [group.x for group in groups], context.data)
        changed: list[Site] = []
        for group in groups:
            reason = self._smooth(program, group, statistics.get(group.x.name))
            if reason is None:
                changed += group.sites
            else:
                refusals += [Refusal(reason, site.output.name, site.name, site.kind) for site in group.sites]
        mark_weights(program, {site.bindings["weight"] for site in changed}, MARK)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(site.name for site in changed), refusals=tuple(refusals))

    def _smooth(self, program: Program, group: InputGroup, statistics: ActivationStatistics | None) -> str | None:
        """Smooth one activation, or say why not."""
        if statistics is None:
            return "no calibration data reaches its input"
        producer = producer_of(program, group)
        worthwhile = WORTHWHILE_PRODUCT if producer is None else WORTHWHILE
        scales, reason = smoothing_scales(statistics, stacked_weights(program, group), self.alpha, worthwhile)
        if scales is None:
            return reason
        if producer is None and not self.multiply:
            return "nothing before its input takes the scale"
        scale_inputs(program, group, producer, scales)
        return None


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [Smooth]
