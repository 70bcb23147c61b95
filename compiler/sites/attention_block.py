"""Attention blocks: an attention with the linear layers around it, whose heads can be taken out together.

Inputs:    the hidden states that the projections read, then what else flows in: rotary tables, masks.
Output:    what the output projection gives, [..., width].
Bindings:  weight (of the output projection), query, key, value, output (names of the linear nodes), query_start,
           key_start, value_start (where in their outputs the heads begin), head_count, kv_head_count, head_dim,
           value_dim.
Refuses:   what attention sites refuse; attention written out over several nodes; heads that are not side by side in
           the outputs of linear layers, or that are read elsewhere too; caches.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from compiler.graph_slices import nodes_on_paths
from compiler.patterns import (
    LAYOUT,
    aten,
    forward_through,
    has_tensor,
    in_graph_order,
    is_call,
    is_weight,
    only_user,
    operands,
    static_size,
    upstream,
    value,
)
from compiler.sites.attention import match_attention
from compiler.sites.linear import match_linear
from compiler.sites.site import Refusal, Site
from compiler.sites.spans import span_of

KIND = "attention-block"
SEARCH_LIMIT = 128


def match_attention_block(node: fx.Node) -> Site | Refusal | None:
    """The block around the attention at `node`, a refusal, or None."""
    attention = match_attention(node)
    if not isinstance(attention, Site):
        return None if attention is None else replace(attention, kind=KIND)

    def refuse(reason: str) -> Refusal:
        return Refusal(reason, attention.output.name, attention.name, KIND)

    if attention.bindings["form"] == "eager":
        return refuse("its attention is written out; run fuse-attention first")
    last = only_user(forward_through(attention.output, LAYOUT))
    if last is None or not isinstance(match_linear(last), Site):
        return refuse("what it gives is not read by one linear layer alone")
    sizes = attention.bindings
    value_dim = static_size(attention.inputs[2], -1)
    widths = {"query": (sizes["head_count"], sizes["head_dim"]), "key": (sizes["kv_head_count"], sizes["head_dim"])}
    widths["value"] = sizes["kv_head_count"], value_dim
    bindings = {name: sizes[name] for name in ("head_count", "kv_head_count", "head_dim")} | {"value_dim": value_dim}
    nodes: set[fx.Node] = {last}
    for (role, (heads, width)), part in zip(widths.items(), attention.inputs[:3], strict=True):
        found = _projection(part, heads * (width or 0))
        if isinstance(found, str):
            return refuse(f"its {role} {found}")
        linear, start = found
        bindings |= {role: linear.name, f"{role}_start": start}
        nodes.add(linear)
    layers = set(nodes)
    nodes |= nodes_on_paths(layers - {last}, last)
    outside = _read_elsewhere(nodes, last)
    if outside is not None:
        return refuse(f"{outside.name} is read elsewhere too")
    output = match_linear(last)
    assert isinstance(output, Site)
    ordered = in_graph_order(nodes)
    return Site(
        kind=KIND,
        name=attention.name,
        nodes=ordered,
        inputs=_inputs(ordered, layers),
        output=last,
        bindings={**bindings, "output": last.name, "weight": output.bindings["weight"]},
    )


def _projection(part: fx.Node, width: int) -> tuple[fx.Node, int] | str:
    """The linear node that gives a query, key or value of so many numbers a token, and where in its outputs."""
    spans = set()
    for count, node in enumerate(upstream(part, lambda one: is_call(one, aten.linear.default))):
        if count > SEARCH_LIMIT:
            return "comes from far away"
        if has_tensor(node) and value(node).dim() and static_size(node, -1) == width:
            span = span_of(node)
            if is_call(span.source, aten.linear.default) and span.step == 1:
                spans.add((span.source, span.start))
    linears = {source for source, _ in spans}
    if len(spans) != 1 or not isinstance(match_linear(next(iter(linears))), Site):
        return "is not heads side by side from one linear layer"
    return next(iter(spans))


def _read_elsewhere(nodes: set[fx.Node], last: fx.Node) -> fx.Node | None:
    """The first of them that a node outside reads, sizes aside."""
    for node in in_graph_order(nodes - {last}):
        if any(user not in nodes and (has_tensor(user) or user.op == "output") for user in node.users):
            return node
    return None


def _inputs(nodes: tuple[fx.Node, ...], layers: set[fx.Node]) -> tuple[fx.Node, ...]:
    """What flows in: what the layers read, then all else that is no stored weight and no size."""
    first = [operands(node)[0] for node in nodes if node in layers]
    rest = [source for node in nodes if node not in layers for source in node.all_input_nodes]
    flowing = [one for one in (*first, *rest) if one not in nodes and has_tensor(one) and not is_weight(one)]
    return tuple(dict.fromkeys(flowing))
