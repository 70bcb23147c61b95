"""(x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + epsilon) * weight + bias  ->  layer_norm(x, [width], weight, bias)

Before:  mean -> sub -> pow -> mean -> add -> sqrt -> div -> mul -> add              After:  layer_norm
         d * d for pow(d, 2); rsqrt, or sqrt and reciprocal, and a product for the division; no weight, no bias
Shapes:  x [..., width], weight and bias [width]; epsilon a Python float.
Exact up to rounding: 1e-6 in float32, 1e-2 in bfloat16, where the statistics are now taken in float32.
Refuses: a mean that is not over the last dim alone; a width that varies; an inner value has other users.
Source:  Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. 4; the form that exporters write for ONNX before opset 17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from compiler.hookspecs import hookimpl
from compiler.patterns import aten, insert_call, replace, value
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal
from compiler.sites.layer_norm import LayerNorm, match_layer_norm


@dataclass(frozen=True)
class FuseLayerNorm(Rewrite):
    """Puts aten.layer_norm in the place of its nine nodes."""

    name: ClassVar[str] = "fuse-layer-norm"
    family: ClassVar[str | None] = "fuse"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes whose values layer_norm computes now."""
        changed: list[str] = []
        refusals: list[Refusal] = []
        for node in list(program.graph.nodes):
            found = None if node._erased else match_layer_norm(node)
            if isinstance(found, Refusal):
                refusals.append(found)
            elif found is not None:
                changed.append(found.output.name)
                replace(found.output, _fused(found))
        if changed:
            program.refresh()
        return PassResult(changed=tuple(changed), refusals=tuple(refusals))


def _fused(norm: LayerNorm) -> fx.Node:
    width = int(value(norm.x).shape[-1])
    return insert_call(norm.output, aten.layer_norm.default, norm.x, [width], norm.weight, norm.bias, norm.epsilon)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FuseLayerNorm]
