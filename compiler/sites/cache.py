"""Cache sites: attention of new tokens over buffers of keys and values, which calls hand on as states.

Inputs:    the tensors and sizes that regraft::group_query_attention takes, in order, without those that are none.
Output:    (output [batch, tokens, heads * head_dim], present_key, present_value): the operator's three results.
Bindings:  arguments (the operator's name for each input), settings (its other arguments by name), past_key and
           past_value (the nodes of the buffers), kv_head_count, head_dim, rotary_dim (0: keys come as they are stored),
           is_float (whether the buffers hold floats).
Refuses:   buffers that are no inputs of the Program.
"""

from __future__ import annotations

from torch import fx

from compiler.patterns import all_arguments, value
from compiler.sites.names import refusal, weighted_name
from compiler.sites.site import Refusal, Site

CACHED_ATTENTION = "regraft.group_query_attention.default"


def match_cache(node: fx.Node) -> Site | Refusal | None:
    """The cache site at `node`, a refusal, or None where `node` attends to no buffers."""
    if str(node.target) != CACHED_ATTENTION:
        return None
    given = all_arguments(node)
    past_key, past_value = given["past_key"], given["past_value"]
    for buffer in (past_key, past_value):
        if buffer.op != "placeholder":
            return refusal("cache", f"its buffer {buffer.name} is computed", node)
    inputs = {name: one for name, one in given.items() if isinstance(one, fx.Node)}
    cos = given["cos_cache"]
    return Site(
        kind="cache",
        name=weighted_name(node, None),
        nodes=(node,),
        inputs=tuple(inputs.values()),
        output=node,
        bindings={
            "arguments": tuple(inputs),
            "settings": {name: one for name, one in given.items() if name not in inputs},
            "past_key": past_key,
            "past_value": past_value,
            "kv_head_count": int(value(past_key).shape[1]),
            "head_dim": int(value(past_key).shape[3]),
            "rotary_dim": 0 if cos is None else 2 * int(value(cos).shape[-1]),
            "is_float": value(past_key).is_floating_point(),
        },
    )
