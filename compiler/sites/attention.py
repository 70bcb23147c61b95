"""Attention sites: one fused op (aten's or regraft's), or eager attention around a softmax.

Inputs:    query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, keys, head_dim] before any repetition
           of heads, then the masks, added to the scores or, boolean, selecting among them (as a rule one or none).
Output:    [batch, heads, tokens, value_dim].
Bindings:  form ("sdpa" | "eager" | "regraft"), scale, softcap (0: none), head_count, kv_head_count, head_dim,
           mask (`none`, or `causal`, `window`, `padding`, `bias` joined by +), causal (no token sees a later key),
           window (lowest and highest key - query, None: no limit), is_causal (the op's own flag),
           merged_masks (for each mask, whether batch and heads are one dim of it),
           query, key, value, output (names of the linear sites around it, None where there is no single one).
Refuses:   dropout in use; other than four dims; weights or scores that something else reads; masks before the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from compiler.patterns import (
    LAYOUT,
    argument,
    aten,
    forward_through,
    in_graph_order,
    is_call,
    only_user,
    operands,
    same_size,
    static_size,
    upstream,
    value,
)
from compiler.sites.attention_scores import (
    SOFTMAXES,
    NearMissError,
    four_dimensional,
    read_scores,
    read_values,
)
from compiler.sites.linear import match_linear
from compiler.sites.masks import Mask, describe_mask
from compiler.sites.names import module_path, refusal, shared_path
from compiler.sites.site import Refusal, Site

SDPA = aten.scaled_dot_product_attention.default
PROJECTION_SEARCH_LIMIT = 128


def match_attention(node: fx.Node) -> Site | Refusal | None:
    """The attention site around `node`, which is a fused op or a softmax; a refusal; or None."""
    try:
        if is_call(node, SDPA):
            return _match_sdpa(node)
        if str(node.target) == "regraft.attention.default":
            return _match_fused(node)
        return _match_eager(node) if is_call(node, *SOFTMAXES) else None
    except NearMissError as near_miss:
        return refusal("attention", near_miss.reason, near_miss.node)


def _match_sdpa(node: fx.Node) -> Site:
    query, key, value_ = operands(node)[:3]
    if argument(node, "dropout_p"):
        raise NearMissError("attention weights are dropped at random", node)
    for role, tensor in (("query", query), ("key", key), ("value", value_)):
        if value(tensor).dim() != 4:
            raise NearMissError(f"the {role} is not [batch, heads, tokens, head_dim]", node)
    given = argument(node, "scale")
    head_dim = static_size(query, -1)
    if given is None and head_dim is None:
        raise NearMissError("the head dim is not fixed", node)
    scale = float(given) if given is not None else 1 / math.sqrt(head_dim or 1)
    mask, is_causal = argument(node, "attn_mask"), bool(argument(node, "is_causal"))
    masks = [] if mask is None else [mask]
    return _site("sdpa", node, [node], (query, key, value_), masks, is_causal, scale, 0.0)


def _match_fused(node: fx.Node) -> Site:
    query, key, value_, mask, is_causal, scale, softcap = operands(node)
    masks = [] if mask is None else [mask]
    return _site("regraft", node, [node], (query, key, value_), masks, is_causal, scale, softcap)


def _match_eager(softmax: fx.Node) -> Site | None:
    scores = read_scores(softmax)
    if scores is None:
        if (found := read_values(softmax)) is not None and value(softmax).dim() >= 3:
            raise NearMissError("the weights do not come from a product of query and key", found[0])
        return None
    values = read_values(softmax)
    if values is None:
        raise NearMissError("the weights are not multiplied with values", softmax)
    product, merged_value, passed = values
    output = product
    if value(product).dim() == 3:
        user = only_user(product)
        if user is None or not is_call(user, aten.reshape.default) or value(user).dim() != 4:
            raise NearMissError("the output is not [batch, heads, tokens, head_dim]", product)
        output = user
    value_ = four_dimensional(merged_value, "value")
    merged = [] if merged_value is value_ else [merged_value]
    nodes = [*scores.nodes, *passed, *merged, product, output]
    inputs = (scores.query, scores.key, value_)
    return _site("eager", output, nodes, inputs, scores.masks, False, scores.scale, scores.softcap, scores.merged)


def _site(
    form: str,
    output: fx.Node,
    nodes: Sequence[fx.Node],
    inputs: tuple[fx.Node, fx.Node, fx.Node],
    masks: Sequence[fx.Node],
    is_causal: bool,
    scale: float,
    softcap: float,
    merged_masks: Sequence[bool] = (),
) -> Site:
    query, (key, key_nodes), (value_, value_nodes) = inputs[0], shared_heads(inputs[1]), shared_heads(inputs[2])
    heads, kv_heads = static_size(query, 1), static_size(key, 1)
    if heads is None or kv_heads is None or heads % kv_heads or static_size(value_, 1) != kv_heads:
        raise NearMissError(f"{heads} query heads do not share {kv_heads} key heads evenly", output)
    allowed = Mask(highest=0) if is_causal else Mask()
    for mask in masks:
        allowed = allowed.both(describe_mask(mask))
    projections = _projections((query, key, value_), output)
    return Site(
        kind="attention",
        name=_name(module_path(output), [name for name in projections.values() if name], output.name),
        nodes=in_graph_order([*nodes, *key_nodes, *value_nodes]),
        inputs=(query, key, value_, *masks),
        output=output,
        bindings={
            "form": form,
            "scale": scale,
            "softcap": softcap,
            "head_count": heads,
            "kv_head_count": kv_heads,
            "head_dim": static_size(query, -1),
            "mask": allowed.kind,
            "causal": allowed.causal,
            "window": (allowed.lowest, allowed.highest),
            "is_causal": is_causal,
            "merged_masks": tuple(merged_masks) or (False,) * len(masks),
            **projections,
        },
    )


def shared_heads(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The key or value before its heads were repeated, and the nodes that repeat them.

    Repetition is reshape(expand(unsqueeze(x, 2), [batch, kv_heads, n, keys, head_dim])) or repeat_interleave(x, n, 1).
    """
    if is_call(node, aten.repeat_interleave.self_int) and argument(node, "dim") == 1:
        return operands(node)[0], [node]
    if not is_call(node, aten.reshape.default, aten.view.default):
        return node, []
    expanded = operands(node)[0]
    added: Any = operands(expanded)[0] if is_call(expanded, aten.expand.default) else None
    if not is_call(added, aten.unsqueeze.default):
        return node, []
    source, dim = operands(added)
    whole, ours = value(source), value(node)
    if whole.dim() != 4 or ours.dim() != 4 or dim % 5 != 2:
        return node, []
    kept = all(same_size(whole.shape[i], ours.shape[i]) for i in (0, 2, 3))
    repeats = value(expanded).shape[2]
    if not kept or not same_size(whole.shape[1] * repeats, ours.shape[1]):
        return node, []
    return source, [added, expanded, node]


def _name(path: str, projections: Sequence[str], fallback: str) -> str:
    """The path of the module the attention is in, or of the one above it where that is what holds its projections."""
    shared = shared_path(projections) if len(projections) > 1 else ""
    if not path:
        return shared or fallback
    return shared if shared == path.rpartition(".")[0] and not shared.rpartition(".")[2].isdecimal() else path


def _projections(inputs: Sequence[fx.Node], output: fx.Node) -> dict[str, str | None]:
    """The names of the linear sites that give query, key and value and take the output."""
    names = [_projection_name(node) for node in inputs]
    after = only_user(forward_through(output, LAYOUT))
    site = match_linear(after) if after is not None else None
    return dict(zip(("query", "key", "value"), names, strict=True)) | {"output": _site_name(site)}


def _projection_name(node: fx.Node) -> str | None:
    """The one linear layer that `node` comes from, past rotary embedding, norms and splits; None for several."""
    linears: list[fx.Node] = []
    for count, source in enumerate(upstream(node, lambda found: is_call(found, aten.linear.default))):
        if is_call(source, aten.linear.default):
            linears.append(source)
        if count > PROJECTION_SEARCH_LIMIT:
            return None
    return _site_name(match_linear(linears[0])) if len(linears) == 1 else None


def _site_name(site: Any) -> str | None:
    return site.name if isinstance(site, Site) else None
