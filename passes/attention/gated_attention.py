"""attention(q, k, v)  ->  attention(q, k, v) * 2 sigmoid(W hidden + b), a gate that starts at 1

Before:  attention(query, key, value, mask)
After:   regraft::attention(query, key, value, mask), each number of its output, or each head, times a gate that reads
         what the queries read
Shapes:  hidden [batch, tokens, width]; gate [batch, heads, tokens, value_dim], or [batch, heads, tokens, 1].
Lossy:   only once healing has trained the gate: W and b start as zeros, so that the gate is exactly 1.
Refuses: what token-mixer sites refuse; masks that have batch and heads as one dim; attention with such a gate already.
Source:  Qiu et al. 2025, arXiv:2505.06708, eq. 5 and table 1 (G1, after the attention); the factor 2 is not theirs: it
         makes the start neutral where the sigmoid still learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from compiler.hookspecs import hookimpl
from compiler.mixers.mixer import Gate, MixerSizes, by_head
from compiler.ops.attention import attention
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site

MUL = torch.ops.aten.mul.Tensor


@dataclass(frozen=True)
class GatedAttention(ChoosesLayers, Graft):
    """Puts a gate behind attention, for healing to train."""

    name: ClassVar[str] = "gated-attention"
    site_kinds: ClassVar[tuple[str, ...]] = ("token-mixer",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    gates: Annotated[Literal["element", "head"], "element: a gate for every number; head: one a head"] = "element"

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The gated attention, or why there is none."""
        if any(site.bindings["merged_masks"]):
            return Refusal("its mask has batch and heads as one dim", site.output.name)
        if any(user.target is MUL and any(_is_gate(one) for one in user.args) for user in site.output.users):
            return Refusal("a gate stands behind it already", site.output.name, site.name, site.kind)
        sizes = MixerSizes.of(site)
        per_head = sizes.value_dim if self.gates == "element" else 1
        note = f"a gate for each {self.gates}, 1 until healed"
        return Replacement(GateBehindAttention(site, sizes, per_head), note, heal=("gate.*",))


class GateBehindAttention(nn.Module):
    """Attention as the site computes it, and the gate."""

    def __init__(self, site: Site, sizes: MixerSizes, per_head: int) -> None:
        super().__init__()
        self.heads = sizes.head_count
        self.is_causal = bool(site.bindings["is_causal"])
        self.scale, self.softcap = float(site.bindings["scale"]), float(site.bindings["softcap"])
        self.gate = Gate(sizes.hidden_width, torch.zeros(sizes.head_count * per_head))

    def forward(
        self, hidden: Tensor, raw_query: Tensor, raw_key: Tensor, query: Tensor, key: Tensor, value: Tensor,
        *masks: Tensor,
    ) -> Tensor:  # fmt: skip
        """[batch, heads, tokens, value_dim] from the inputs of a token-mixer site."""
        mask = joined_mask(masks, query.dtype)
        attended: Tensor = attention(query, key, value, mask, self.is_causal, self.scale, self.softcap)
        return attended * (2 * by_head(self.gate(hidden), self.heads).sigmoid())


def _is_gate(value: object) -> bool:
    """Whether a factor is a sigmoid, or a number times one."""
    if not isinstance(value, fx.Node):
        return False
    if value.target is MUL:
        return any(_is_gate(one) for one in value.args) and not all(isinstance(one, fx.Node) for one in value.args)
    return value.target is torch.ops.aten.sigmoid.default


def joined_mask(masks: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Several masks as one: boolean where all are, otherwise what is added to the scores."""
    chosen = [mask for mask in masks if mask.dtype == torch.bool]
    added = [mask.to(dtype) for mask in masks if mask.dtype != torch.bool]
    selection, bias = (_fold(join, one) for join, one in ((torch.bitwise_and, chosen), (torch.add, added)))
    if selection is None or bias is None:
        return bias if selection is None else selection
    return torch.where(selection, bias, -torch.inf)


def _fold(join: object, masks: Sequence[Tensor]) -> Tensor | None:
    assert callable(join)
    joined: Tensor | None = None
    for mask in masks:
        joined = mask if joined is None else join(joined, mask)
    return joined


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [GatedAttention]
