"""x * cos + rotate_half(x) * sin  ->  rotary_embedding(x, cos, sin, interleaved)

Before:  slice, slice -> neg -> cat -> mul; mul -> add [-> cat with what is not turned], cos and sin of cat(f, f);
         also neighbours in pairs (stack and flatten), and a * cos - b * sin beside b * cos + a * sin
After:   regraft::rotary_embedding with one cosine and one sine a pair, cos(f) and sin(f), shared by all layers
Shapes:  x [batch, heads, tokens, head_dim]; cos and sin [batch or 1, tokens, rotary_dim / 2].
Exact:   up to rounding: 1e-6 in float32, 1e-2 in bfloat16, where products and sum are now taken in float32.
Refuses: an inner value has other users; cos or sin differ between the halves or the heads, or are not known to agree;
         x has no heads; the result has another shape or dtype than x.
Source:  Su et al. 2021, arXiv:2104.09864, eq. 34; `compiler/ops/rotary_embedding.py` is the definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

import compiler.ops.rotary_embedding  # noqa: F401  (registers the op)
from compiler.hookspecs import hookimpl
from compiler.patterns import aten, insert_call, is_call, operands, replace, same_size, value
from compiler.program import Program
from compiler.repeated_halves import Make, RepeatedHalves
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal
from compiler.sites.names import refusal
from compiler.sites.rotary import KIND, RotaryEmbedding, match_rotary_embedding


@dataclass(frozen=True)
class FuseRotary(Rewrite):
    """x * cos + rotate_half(x) * sin  ->  rotary_embedding(x, cos, sin, interleaved)"""

    name: ClassVar[str] = "fuse-rotary"
    family: ClassVar[str | None] = "fuse"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes whose values rotary_embedding computes now."""
        angles = _Angles(program)
        changed: list[str] = []
        refusals: list[Refusal] = []
        for node in list(program.graph.nodes):
            found = None if node._erased else match_rotary_embedding(node)
            done = _fuse(found, angles) if isinstance(found, RotaryEmbedding) else found
            if isinstance(done, Refusal):
                refusals.append(done)
            elif done is not None:
                changed.append(done)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(changed), refusals=tuple(refusals))


class _Angles:
    """Cosines and sines in the form that the operator takes, [batch or 1, tokens, rotary_dim / 2], each made once."""

    def __init__(self, program: Program) -> None:
        self._halves = {way: RepeatedHalves(program, interleaved=way) for way in (False, True)}
        self._shaped: dict[fx.Node, fx.Node] = {}

    def find(self, given: fx.Node, match: RotaryEmbedding) -> Make | str:
        """What makes the form of `given`, or why there is none."""
        shape = value(given).shape
        if len(shape) > 2 and not same_size(shape[-3], 1):
            return "cos or sin differ between heads"
        if len(shape) < 2 or not same_size(shape[-2], value(match.x).shape[-2]):
            return "cos or sin have no row for every token"
        flat = operands(given)[0] if _is_unsqueezed_for_heads(given) else given
        if match.of_pairs:
            return lambda: self._shape(flat)
        half = self._halves[match.interleaved].of(flat)
        if half is None:
            return "cos or sin are not known to be equal for both numbers of a pair"
        return lambda: self._shape(half())

    def _shape(self, node: fx.Node) -> fx.Node:
        """Three dims, whatever was broadcast."""
        rank = value(node).dim()
        if rank == 3:
            return node
        if node not in self._shaped:
            reshape = aten.unsqueeze.default if rank == 2 else aten.squeeze.dim
            self._shaped[node] = insert_call(node.next, reshape, node, 0 if rank == 2 else 1, like=node)
        return self._shaped[node]


def _fuse(match: RotaryEmbedding, angles: _Angles) -> str | Refusal:
    """Replace one match; the name of what went, or why it stays."""
    found = [angles.find(given, match) for given in (match.cos, match.sin)]
    cos, sin = found
    if isinstance(cos, str) or isinstance(sin, str):
        return refusal(KIND, cos if isinstance(cos, str) else str(sin), match.output)
    op = torch.ops.regraft.rotary_embedding.default
    name = match.output.name
    replace(match.output, insert_call(match.output, op, match.x, cos(), sin(), match.interleaved))
    return name


def _is_unsqueezed_for_heads(node: fx.Node) -> bool:
    """Whether `node` is [batch or 1, tokens, width] with a dim for the heads put in."""
    return is_call(node, aten.unsqueeze.default) and value(node).dim() == 4 and node.args[1] in (1, -3)


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [FuseRotary]
