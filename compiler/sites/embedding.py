"""Embedding sites: rows of a stored table, chosen by integer indices.

Inputs:    indices [...].      Output: [..., width].
Bindings:  weight (dotted name), vocabulary_size, width, padding_index (None where there is none).
Refuses:   a table that the graph computes.
"""

from __future__ import annotations

from torch import fx

from compiler.patterns import argument, aten, is_call, is_weight, value
from compiler.sites.names import refusal, weighted_name
from compiler.sites.site import Refusal, Site


def match_embedding(node: fx.Node) -> Site | Refusal | None:
    """The embedding site at `node`, a refusal, or None when `node` looks nothing up."""
    if not is_call(node, aten.embedding.default):
        return None
    table, padding = argument(node, "weight"), argument(node, "padding_idx")
    if not is_weight(table):
        return refusal("embedding", f"the table is computed by {table.name}", node)
    vocabulary_size, width = value(table).shape
    return Site(
        kind="embedding",
        name=weighted_name(node, str(table.target)),
        nodes=(node,),
        inputs=(argument(node, "indices"),),
        output=node,
        bindings={
            "weight": str(table.target),
            "vocabulary_size": int(vocabulary_size),
            "width": int(width),
            "padding_index": padding if isinstance(padding, int) and padding >= 0 else None,
        },
    )
