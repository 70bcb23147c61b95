"""Linear sites: x @ weight.T + bias with a stored weight.

Inputs:    x [..., in_features].      Output: [..., out_features].
Bindings:  weight, bias (dotted names, bias may be None), in_features, out_features, weight_transposed (True when the
           weight is stored as [in_features, out_features] and transposed on the way in).
Refuses:   a weight that the graph computes; a product that `canonicalize` would have made a linear.
"""

from __future__ import annotations

from torch import fx

from compiler.patterns import LAYOUT, argument, aten, has_tensor, is_call, is_weight, permutation, through, value
from compiler.sites.names import refusal, weighted_name
from compiler.sites.site import Refusal, Site

PRODUCTS = frozenset({aten.addmm.default, aten.mm.default, aten.matmul.default})


def match_linear(node: fx.Node) -> Site | Refusal | None:
    """The linear site at `node`, a refusal, or None when `node` is no linear layer."""
    if is_call(node, *PRODUCTS):
        return _refuse_product(node)
    if not is_call(node, aten.linear.default):
        return None
    x, stored, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    transposed = permutation(stored) == (1, 0)
    weight = stored.args[0] if transposed else stored
    if not is_weight(weight):
        return refusal("linear", f"the weight is computed by {weight.name}", node)
    if bias is not None and not is_weight(bias):
        return refusal("linear", f"the bias is computed by {bias.name}", node, str(weight.target))
    out_features, in_features = value(stored).shape
    return Site(
        kind="linear",
        name=weighted_name(node, str(weight.target)),
        nodes=(stored, node) if transposed else (node,),
        inputs=(x,),
        output=node,
        bindings={
            "weight": str(weight.target),
            "bias": None if bias is None else str(bias.target),
            "in_features": int(in_features),
            "out_features": int(out_features),
            "weight_transposed": transposed,
        },
    )


def _refuse_product(node: fx.Node) -> Refusal | None:
    """Why a product with a stored matrix is no site yet; None for a product of two activations."""
    for operand in node.all_input_nodes:
        source = through(operand, LAYOUT)
        if is_weight(source) and has_tensor(operand) and value(operand).dim() == 2:
            reason = "a product with a stored weight in another form than aten.linear; run canonicalize first"
            return refusal("linear", reason, node, str(source.target))
    return None
