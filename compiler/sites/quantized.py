"""Quantized sites: layers and weights that are stored as codes, and activations that are rounded on the way.

Kind quantized: a quantized product or table.  Inputs: x or indices.  A weight alone, dequantized where it is read.
Inputs: none.   Output: what the product, table or weight gives.
Kind quantized-activation: a value that is rounded to codes and back.  Inputs: x.  Output: x rounded.
Bindings:  form (the operator's name), weight (dotted name of the codes, None for an activation).
Refuses:   codes or scales that the graph computes from its inputs.
"""

from __future__ import annotations

from torch import fx

from compiler.patterns import argument, is_weight, upstream, value
from compiler.sites.names import refusal, weighted_name
from compiler.sites.site import Refusal, Site

LAYERS = {
    "regraft.dynamic_quantized_linear.default": "x",
    "regraft.quantized_linear.default": "x",
    "regraft.quantized_embedding.default": "indices",
}
"""The name of what flows in."""
STORED = ("weight", "scales", "zero_points", "bias")
WEIGHT = "regraft.dequantize_linear.default"
ACTIVATION = "regraft.fake_quantize_linear.default"


def match_quantized(node: fx.Node) -> Site | Refusal | None:
    """The quantized layer or weight at `node`, a refusal, or None when `node` is neither."""
    target = str(node.target)
    if target == WEIGHT:
        codes = argument(node, "codes")
        if not is_weight(codes):
            return None
        return _site(node, codes, (), [argument(node, "scale"), argument(node, "zero_point")])
    if target in LAYERS:
        declared = {one.name for one in node.target._schema.arguments}  # type: ignore[union-attr]
        parts = [argument(node, name) for name in STORED if name in declared]
        return _site(node, parts[0], (argument(node, LAYERS[target]),), parts)
    return None


def match_quantized_activation(node: fx.Node) -> Site | None:
    """The rounding at `node`, or None when it is none."""
    if str(node.target) != ACTIVATION:
        return None
    return Site(
        kind="quantized-activation",
        name=weighted_name(node, None),
        nodes=(node,),
        inputs=(argument(node, "x"),),
        output=node,
        bindings={"form": _form(node), "weight": None},
    )


def _site(node: fx.Node, codes: fx.Node, inputs: tuple[fx.Node, ...], stored: list[fx.Node | None]) -> Site | Refusal:
    weight = _stored_codes(codes)
    if any(part is not None and not _is_constant(part) for part in stored):
        return refusal("quantized", "its codes or scales are computed from inputs", node, str(weight.target))
    return Site(
        kind="quantized",
        name=weighted_name(node, str(weight.target)),
        nodes=(node,),
        inputs=inputs,
        output=node,
        bindings={"form": _form(node), "weight": str(weight.target)},
    )


def _stored_codes(codes: fx.Node) -> fx.Node:
    """Where codes are kept that a table shares with a product in its shape, or that are unpacked when read."""
    kept = [node for node in upstream(codes, lambda one: False) if node.op == "get_attr"]
    return max(kept, key=lambda node: value(node).numel(), default=codes)


def _is_constant(node: fx.Node) -> bool:
    return all(source.op in ("get_attr", "call_function") for source in upstream(node, lambda one: False))


def _form(node: fx.Node) -> str:
    return str(node.target).split(".")[1]
