"""Token-mixer sites: self-attention with what surrounds it, so that anything that mixes tokens can stand in for it.

Inputs:    hidden [batch, tokens, hidden_width], which the projections of query, key and value all read;
           query and key before any rotary embedding, then query, key and value as the attention takes them, all
           [batch, heads, tokens, head_dim]; then the masks of the attention site.
Output:    what the attention gives, [batch, heads, tokens, value_dim].
Bindings:  those of the attention site, and hidden_width, value_dim, rotary (whether query and key are rotated).
Refuses:   what attention sites refuse; keys of another sequence; query, key and value that are not each one linear
           layer's output of the same hidden state, as behind a compressed or a quantized projection.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from torch import fx

from compiler.patterns import COPIES, aten, in_graph_order, is_call, operands, same_size, through, upstream, value
from compiler.sites.attention import match_attention
from compiler.sites.rotary import RotaryEmbedding, match_rotary_embedding
from compiler.sites.site import Refusal, Site

KIND = "token-mixer"
PROJECTION_SEARCH_LIMIT = 128
ROTARY_SEARCH_LIMIT = 24
ROTARY_OP = "regraft.rotary_embedding.default"


def match_token_mixer(node: fx.Node) -> Site | Refusal | None:
    """The token-mixer site around `node`, which is a fused attention or a softmax; a refusal; or None."""
    attention = match_attention(node)
    if not isinstance(attention, Site):
        return None if attention is None else replace(attention, kind=KIND)
    query, key, value_, *masks = attention.inputs

    def refuse(reason: str) -> Refusal:
        return Refusal(reason, attention.output.name, attention.name, KIND)

    if not same_size(value(query).shape[2], value(key).shape[2]):
        return refuse("its keys are of another sequence")
    sources = [_projected(part) for part in (query, key, value_)]
    if None in sources:
        return refuse("its query, key or value is not the output of one linear layer")
    hidden = sources[0]
    if hidden is None or any(source is not hidden for source in sources):
        return refuse("its query, key and value are not projected from one hidden state")
    fits = value(hidden).dim() == 3 and isinstance(value(hidden).shape[2], int)
    if not fits or not all(same_size(value(hidden).shape[dim], value(query).shape[at]) for dim, at in ((0, 0), (1, 2))):
        return refuse(f"its hidden state {hidden.name} is not [batch, tokens, width]")
    unrotated = [_unrotated(part) for part in (query, key)]
    return Site(
        kind=KIND,
        name=attention.name,
        nodes=attention.nodes,
        inputs=(hidden, *(before for before, _ in unrotated), query, key, value_, *masks),
        output=attention.output,
        bindings={
            **attention.bindings,
            "hidden_width": int(value(hidden).shape[2]),
            "value_dim": int(value(value_).shape[3]),
            "rotary": all(rotated for _, rotated in unrotated),
        },
    )


def _projected(node: fx.Node) -> fx.Node | None:
    """What the one linear layer that `node` comes from reads."""
    found = list(islice(upstream(node, lambda one: is_call(one, aten.linear.default)), PROJECTION_SEARCH_LIMIT + 1))
    linears = in_graph_order(one for one in found if is_call(one, aten.linear.default))
    if len(found) > PROJECTION_SEARCH_LIMIT or len(linears) != 1:
        return None
    return through(operands(linears[0])[0], COPIES)


def _unrotated(node: fx.Node) -> tuple[fx.Node, bool]:
    """Query or key before its rotary embedding, written out or not, and whether it has one."""
    rotated = through(node, COPIES)
    if str(rotated.target) == ROTARY_OP:
        return operands(rotated)[0], True
    near = islice(upstream(rotated, lambda one: is_call(one, aten.linear.default)), ROTARY_SEARCH_LIMIT)
    for join in near:
        match = match_rotary_embedding(join)
        if isinstance(match, RotaryEmbedding) and match.output is rotated:
            return match.x, True
    return node, False
