"""Attention, eager or aten's, -> regraft::attention(query, key, value, mask, is_causal, scale, softcap)

Before:  matmul -> mul -> add -> softmax -> matmul, or aten.scaled_dot_product_attention; keys repeated for every head
After:   regraft::attention, which shares key heads by itself; a mask that is always true is gone, one that is provably
         causal and nothing else is the flag is_causal, several masks are one
Shapes:  query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, keys, head_dim].
Exact:   up to rounding: 1e-6 in float32, 1e-2 in bfloat16. Rows that may attend to nothing give zeros, where eager
         attention with minus infinity gives nan.
Refuses: what the attention sites refuse: weights or scores that something else reads, masks before the scale, dropout.
Source:  Vaswani et al. 2017, arXiv:1706.03762, eq. 1; `compiler/ops/attention.py` is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

import compiler.ops.attention  # noqa: F401  (registers the op)
from compiler.hookspecs import hookimpl
from compiler.patterns import aten, insert_call, replace, value
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal, Site, find_sites
from compiler.sites.masks import describe_mask


@dataclass(frozen=True)
class FuseAttention(Rewrite):
    """Puts one op in the place of every attention site that is not fused yet."""

    name: ClassVar[str] = "fuse-attention"
    family: ClassVar[str | None] = "fuse"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the sites."""
        found = find_sites(program, ("attention",))
        fused = [site.name for site in found if isinstance(site, Site) and _fuse(site)]
        if fused:
            program.graph.eliminate_dead_code()
            program.refresh()
        return PassResult(tuple(fused), tuple(site for site in found if isinstance(site, Refusal)))


def _fuse(site: Site) -> bool:
    """Replace one site; False where its op and its mask are as they should be."""
    query, key, value_, *masks = site.inputs
    needed, is_causal = _needed_masks(masks, site.bindings["merged_masks"], bool(site.bindings["is_causal"]))
    if site.bindings["form"] == "regraft" and len(needed) == len(masks):
        return False
    mask = _one_mask(site, needed)
    settings = (is_causal, float(site.bindings["scale"]), float(site.bindings["softcap"]))
    op = torch.ops.regraft.attention.default
    replace(site.output, insert_call(site.output, op, query, key, value_, mask, *settings))
    return True


def _needed_masks(
    masks: Sequence[fx.Node], merged: Sequence[bool], is_causal: bool
) -> tuple[list[tuple[fx.Node, bool]], bool]:
    """The masks that are neither always true nor causal alone, and whether attention is causal by flag then."""
    needed = []
    for mask, is_merged in zip(masks, merged, strict=True):
        allowed = describe_mask(mask)
        if allowed.only_causal:
            is_causal = True
        elif not allowed.always_true:
            needed.append((mask, is_merged))
    return needed, is_causal


def _one_mask(site: Site, masks: Sequence[tuple[fx.Node, bool]]) -> fx.Node | None:
    """All masks as one: boolean where all are, otherwise added in the dtype of the query."""
    terms = [_with_heads(site, mask) if is_merged else mask for mask, is_merged in masks]
    if not terms:
        return None
    chosen = [term for term in terms if value(term).dtype == torch.bool]
    added = [_cast(site, term) for term in terms if value(term).dtype != torch.bool]
    selection = _joined(site, aten.bitwise_and.Tensor, chosen)
    bias = _joined(site, aten.add.Tensor, added)
    if selection is None or bias is None:
        return bias if selection is None else selection
    return insert_call(site.output, aten.where.ScalarOther, selection, bias, -torch.inf)


def _joined(site: Site, join: torch._ops.OpOverload, terms: Sequence[fx.Node]) -> fx.Node | None:
    joined: fx.Node | None = None
    for term in reversed(terms):
        joined = term if joined is None else insert_call(site.output, join, joined, term)
    return joined


def _cast(site: Site, mask: fx.Node) -> fx.Node:
    wanted = value(site.inputs[0]).dtype
    return mask if value(mask).dtype == wanted else insert_call(site.output, aten.to.dtype, mask, wanted)


def _with_heads(site: Site, mask: fx.Node) -> fx.Node:
    """A mask [batch * heads, tokens, keys] as [batch, heads, tokens, keys]; one that all heads share stays as it is."""
    if value(mask).dim() < 3 or value(mask).shape[0] == 1:
        return mask
    sizes = [
        size if isinstance(size, int) else insert_call(site.output, aten.sym_size.int, mask, dim)
        for dim, size in enumerate(value(mask).shape)
    ]
    return insert_call(site.output, aten.reshape.default, mask, [-1, site.bindings["head_count"], *sizes[1:]])


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [FuseAttention]
