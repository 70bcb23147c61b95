"""The heads of an attention site's values: where a linear layer makes them and where the next one reads them.

linear [.., kv_heads * head_dim] -> heads -> attention -> heads side by side [.., heads * head_dim] -> linear
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from compiler.patterns import (
    COPIES,
    RESHAPES,
    aten,
    forward_through,
    has_tensor,
    is_call,
    only_user,
    operands,
    permutation,
    static_size,
    value,
)
from compiler.sites.linear import match_linear
from compiler.sites.site import Refusal, Site
from compiler.sites.spans import SPLITS, span_of

HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True)
class ValueHeads:
    """Values are the outputs of `producer` from `start` on; `consumer` reads what attention makes of them.

    There are `kv_head_count` heads of `head_dim` numbers before and `head_count` behind.
    """

    producer: Site
    start: int
    kv_head_count: int
    head_count: int
    head_dim: int
    consumer: Site


def match_value_heads(attention: Site) -> ValueHeads | Refusal:
    """The layers around the values of an attention site, or why they are not to be found."""
    joined = _joined_heads(attention.output)
    split = _split_heads(attention)
    if joined is None:
        return _refusal(attention, "what it gives is not heads side by side for one linear layer")
    if split is None:
        return _refusal(attention, "its values are not heads side by side from one linear layer")
    producer, start = split
    head_dim = static_size(attention.inputs[2], -1)
    assert head_dim is not None
    kv_heads, heads = attention.bindings["kv_head_count"], attention.bindings["head_count"]
    return ValueHeads(producer, start, kv_heads, heads, head_dim, joined)


def _refusal(attention: Site, reason: str) -> Refusal:
    return Refusal(reason, attention.output.name, attention.name, attention.kind)


def _joined_heads(output: fx.Node) -> Site | None:
    """The linear site that alone reads the heads, [batch, tokens, heads * head_dim]."""
    moved = only_user(forward_through(output, COPIES))
    joined = only_user(forward_through(moved, COPIES)) if moved is not None else None
    if moved is None or joined is None or permutation(moved) != HEADS_FIRST or not is_call(joined, *RESHAPES):
        return None
    heads, head_dim = value(moved).shape[2:]
    reader = only_user(forward_through(joined, COPIES))
    site = match_linear(reader) if reader is not None else None
    fits = value(joined).dim() == 3 and static_size(joined, -1) == heads * head_dim
    return site if isinstance(site, Site) and site.inputs[0] is forward_through(joined, COPIES) and fits else None


def _split_heads(attention: Site) -> tuple[Site, int] | None:
    """The linear site whose outputs from some place on are the values, which nothing else reads, and that place."""
    query, key, moved = attention.inputs[:3]
    split = moved.args[0]
    alone = moved not in (query, key) and set(moved.users) <= set(attention.nodes)
    if permutation(moved) != HEADS_FIRST or not is_call(split, *RESHAPES) or not alone:
        return None
    assert isinstance(split, fx.Node)
    flat = operands(split)[0]
    if value(flat).dim() != 3 or only_user(split) is not moved or only_user(flat) is not split:
        return None
    heads, head_dim = value(split).shape[2:]
    span = span_of(flat)
    site = match_linear(span.source)
    if not isinstance(site, Site) or static_size(flat, -1) != heads * head_dim or span.step != 1:
        return None
    others = (span_of(part) for part in _parts(span.source) if part is not flat)
    apart = all(other.stop <= span.start or span.stop <= other.start for other in others)
    return (site, span.start) if apart else None


def _parts(source: fx.Node) -> Iterator[fx.Node]:
    """What reads `source`, with the parts in place of what it is split into. A reader of all of it spans all of it."""
    for user in source.users:
        if is_call(user, *SPLITS):
            yield from user.users
        elif is_call(user, aten.slice.Tensor) and span_of(user).source is source:
            yield user
        elif has_tensor(user) or user.op == "output":
            yield source
