"""linear(x, W)  ->  linear(x / s, W * s): weights that few bits hold better where the inputs are large

Before:  x = rms_norm(h, g);  linear(x, W1);  linear(x, W2)
After:   x = rms_norm(h, g / s);  linear(x, W1 * s);  linear(x, W2 * s)
         s = E[x**2] ** (alpha / 2) for each input, with the alpha whose rounded weights leave the least error
Shapes:  x [..., in], s [in], W [out, in].
Exact:   up to rounding: 1e-6 in float32, 1e-2 in bfloat16. Quantize weights after it.
Refuses: sites whose inputs calibration data does not reach; weights that other nodes share; inputs that are not finite;
         inputs that nothing before them scales for free; weights that no scale makes easier to round.
Source:  Lin et al. 2023, arXiv:2306.00978, eqs. 4 and 5, with the root mean square of x for its mean magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.quantization.calibration_walk import CalibrationWalk
from compiler.quantization.channel_scaling import (
    InputGroup,
    input_groups,
    mark_weights,
    producer_of,
    scale_inputs,
    stacked_weights,
)
from compiler.quantization.salience import salience_scales
from compiler.quantization.stand_ins import BlockForm
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal

MARK = "_scaled"
"""Ends the name of every weight that a scale went into, so that a second run leaves it as it is."""


@dataclass(frozen=True)
class Awq(Rewrite):
    """Activation-aware weight scaling: the channels that matter get finer steps."""

    name: ClassVar[str] = "awq"

    bits: Annotated[Literal[8, 4, 2], "bits that the weights are to have"] = 4
    group: Annotated[Literal[16, 32, 64, 128, 256], "inputs that are to share a scale"] = 32
    symmetric: Annotated[bool | None, "no zero points; none: at 8 bits"] = None

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Scale the inputs of linear sites in place. `changed` names the sites."""
        groups, refusals = input_groups(program, MARK)
        walk = CalibrationWalk(program, context.data)
        found = []
        for group in groups:
            scales = self._scales(program, group, walk)
            if isinstance(scales, str):
                refusals += [Refusal(scales, site.output.name, site.name, site.kind) for site in group.sites]
            else:
                found.append((group, scales))
        for group, scales in found:
            scale_inputs(program, group, producer_of(program, group), scales)
        changed = [site for group, _ in found for site in group.sites]
        mark_weights(program, {site.bindings["weight"] for site in changed}, MARK)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(site.name for site in changed), refusals=tuple(refusals))

    def _scales(self, program: Program, group: InputGroup, walk: CalibrationWalk) -> Tensor | str:
        """The scales for one input, or why there are none."""
        if producer_of(program, group) is None:
            return "nothing before its input takes the scale"
        statistics = walk.statistics(group.sites[0])
        if statistics is None:
            return "no calibration data reaches its input"
        form = BlockForm(self.bits, self.group, "none", self.symmetric)
        return salience_scales(statistics.second_moment, stacked_weights(program, group), form)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [Awq]
