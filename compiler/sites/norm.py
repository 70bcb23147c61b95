"""Norm sites: layer norm and RMS norm (one op, or written out), batch norm in inference, group norm.

Inputs:    x.      Output: the normed x.
Bindings:  norm ("layer_norm" | "rms_norm" | "batch_norm" | "group_norm"), weight, bias (dotted names or None), epsilon;
           weight_offset for rms_norm (1.0 where the model multiplies by 1 + weight), mean and variance for batch_norm,
           groups for group_norm.
Refuses:   a weight that the graph computes; batch norm that trains; an RMS norm that `fuse-rms-norm` would refuse.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from compiler.patterns import (
    CASTS,
    argument,
    aten,
    in_graph_order,
    is_call,
    is_weight,
    operands,
    scalar,
    through,
    value,
)
from compiler.sites.layer_norm import LayerNorm, match_layer_norm
from compiler.sites.names import refusal, weighted_name
from compiler.sites.rms_norm import RmsNorm, match_rms_norm
from compiler.sites.site import Refusal, Site

BATCH_NORMS = frozenset({aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default})
NORM_OPS = {
    aten.layer_norm.default: "layer_norm",
    aten.group_norm.default: "group_norm",
    **dict.fromkeys(BATCH_NORMS, "batch_norm"),
}


def match_norm(node: fx.Node) -> Site | Refusal | None:
    """The norm site whose last node is `node`, a refusal, or None when nothing is normed here."""
    if is_call(node, *NORM_OPS):
        return _match_op(node, NORM_OPS[node.target])  # type: ignore[index]
    if str(node.target) == "regraft.rms_norm.default":
        x, weight, epsilon = operands(node)
        return _rms_site(RmsNorm(x, weight, epsilon, node, (node,)))
    written_out = match_layer_norm(node)
    if written_out is not None:
        return _layer_site(written_out) if isinstance(written_out, LayerNorm) else written_out
    found = match_rms_norm(node)
    return _rms_site(found) if isinstance(found, RmsNorm) else found


def _rms_site(norm: RmsNorm) -> Site | Refusal:
    stored = _offset_weight(norm.weight)
    if stored is None:
        return refusal("norm", f"a weight is computed by {norm.weight.name}", norm.output)
    weight, offset, between = stored
    bindings = {"weight": _name(weight), "bias": None, "epsilon": norm.epsilon, "weight_offset": offset}
    return _site(norm.output, in_graph_order([*norm.nodes, *between]), norm.x, "rms_norm", bindings)


def _layer_site(norm: LayerNorm) -> Site | Refusal:
    for tensor in (norm.weight, norm.bias):
        if tensor is not None and not is_weight(tensor):
            return refusal("norm", f"a weight is computed by {tensor.name}", norm.output)
    bindings = {"weight": _name(norm.weight), "bias": _name(norm.bias), "epsilon": norm.epsilon}
    return _site(norm.output, norm.nodes, norm.x, "layer_norm", bindings)


def _match_op(node: fx.Node, norm: str) -> Site | Refusal:
    weight, bias = _stored(node, "weight"), _stored(node, "bias")
    for tensor in (weight, bias):
        if tensor is not None and not is_weight(tensor):
            return refusal("norm", f"a weight is computed by {tensor.name}", node)
    bindings: dict[str, Any] = {"weight": _name(weight), "bias": _name(bias), "epsilon": float(argument(node, "eps"))}
    if norm == "batch_norm":
        if is_call(node, aten.batch_norm.default) and argument(node, "training"):
            return refusal("norm", "batch norm takes its statistics from the batch", node)
        bindings |= {"mean": _name(argument(node, "running_mean")), "variance": _name(argument(node, "running_var"))}
    if norm == "group_norm":
        bindings["groups"] = argument(node, "num_groups")
    return _site(node, (node,), operands(node)[0], norm, bindings)


def _site(output: fx.Node, nodes: tuple[fx.Node, ...], x: fx.Node, norm: str, bindings: dict[str, Any]) -> Site:
    name = weighted_name(output, bindings["weight"])
    return Site("norm", name, nodes, (x,), output, {"norm": norm, **bindings})


def _stored(node: fx.Node, name: str) -> Any:
    try:
        return argument(node, name)
    except KeyError:
        return None


def _name(node: Any) -> str | None:
    return str(node.target) if isinstance(node, fx.Node) else None


def _offset_weight(node: Any) -> tuple[fx.Node, float, list[fx.Node]] | None:
    """A stored vector, with a number added to it or not."""
    source: Any = through(node, CASTS) if isinstance(node, fx.Node) else node
    if is_weight(source) and value(source).dim() == 1:
        return source, 0.0, []
    if is_call(source, aten.add.Tensor):
        parts = operands(source)
        for vector, number in (parts, parts[::-1]):
            stored: Any = through(vector, CASTS) if isinstance(vector, fx.Node) else vector
            offset = scalar(number)
            if is_weight(stored) and offset is not None and value(stored).dim() == 1:
                return stored, offset, [source]
    return None
