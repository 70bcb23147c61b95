"""x * rsqrt(mean(x ** 2) + epsilon) * weight  ->  rms_norm(x, weight, epsilon)

Before:  [to float32] -> pow -> mean -> add -> rsqrt -> mul -> [to x's dtype] -> mul        After:  rms_norm
         also aten.rms_norm; x * x for pow; x / sqrt(...) for x * rsqrt(...); a weight that is computed, such as 1 + w
Shapes:  x [..., width], weight [width]; epsilon a Python float.
Exact up to rounding: 1e-6 in float32, 1e-2 in bfloat16, where the product with the weight is now taken in float32.
Refuses: the mean is not over the last dim alone; an inner value has other users; no weight, or one that is not 1-d;
         the result has another dtype than x.
Source:  Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; the 1 + w form: Gemma Team 2024, arXiv:2403.08295.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import compiler.ops.rms_norm  # noqa: F401  (defines the operator)
from compiler.hookspecs import hookimpl
from compiler.patterns import insert_call, replace
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal
from compiler.sites.rms_norm import match_rms_norm


@dataclass(frozen=True)
class FuseRmsNorm(Rewrite):
    """x * rsqrt(mean(x ** 2) + epsilon) * weight  ->  rms_norm(x, weight, epsilon)"""

    name: ClassVar[str] = "fuse-rms-norm"
    family: ClassVar[str | None] = "fuse"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes whose values rms_norm computes now."""
        changed: list[str] = []
        refusals: list[Refusal] = []
        for node in list(program.graph.nodes):
            found = None if node._erased else match_rms_norm(node)
            if isinstance(found, Refusal):
                refusals.append(found)
            elif found is not None:
                fused = insert_call(
                    found.output, torch.ops.regraft.rms_norm.default, found.x, found.weight, found.epsilon
                )
                changed.append(found.output.name)
                replace(found.output, fused)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(changed), refusals=tuple(refusals))


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FuseRmsNorm]
