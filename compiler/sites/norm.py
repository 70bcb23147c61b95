"""Norm sites: layer norm, RMS norm (one op, or its six ATen nodes), batch norm in inference, group norm.

Inputs:    x.      Output: the normed x.
Bindings:  norm ("layer_norm" | "rms_norm" | "batch_norm" | "group_norm"), weight, bias (dotted names or None), epsilon;
           weight_offset for rms_norm (1.0 where the model multiplies by 1 + weight), mean and variance for batch_norm,
           groups for group_norm.
Refuses:   a weight that the graph computes; batch norm that trains; an RMS norm over another dim than the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
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
from compiler.sites.names import refusal, weighted_name
from compiler.sites.site import Refusal, Site

BATCH_NORMS = frozenset({aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default})
NORM_OPS = {
    aten.layer_norm.default: "layer_norm",
    aten.group_norm.default: "group_norm",
    aten.rms_norm.default: "rms_norm",
    **dict.fromkeys(BATCH_NORMS, "batch_norm"),
}


def match_norm(node: fx.Node) -> Site | Refusal | None:
    """The norm site whose last node is `node`, a refusal, or None when nothing is normed here."""
    if is_call(node, *NORM_OPS):
        return _match_op(node, NORM_OPS[node.target])  # type: ignore[index]
    if str(node.target) == "regraft.rms_norm.default":
        return _match_op(node, "rms_norm")
    if is_call(node, aten.rsqrt.default):
        found = match_rms_norm(node)
        if found is None or isinstance(found, Refusal):
            return found
        return _site(found.output, found.nodes, found.x, "rms_norm", found.bindings())
    return None


def _match_op(node: fx.Node, norm: str) -> Site | Refusal:
    weight, bias, offset = _stored(node, "weight"), _stored(node, "bias"), 0.0
    if norm == "rms_norm" and weight is not None and (found := _offset_weight(weight)) is not None:
        weight, offset, _ = found
    for tensor in (weight, bias):
        if tensor is not None and not is_weight(tensor):
            return refusal("norm", f"a weight is computed by {tensor.name}", node)
    bindings: dict[str, Any] = {"weight": _name(weight), "bias": _name(bias), "epsilon": _epsilon(node)}
    if norm == "batch_norm":
        if is_call(node, aten.batch_norm.default) and argument(node, "training"):
            return refusal("norm", "batch norm takes its statistics from the batch", node)
        bindings |= {"mean": _name(argument(node, "running_mean")), "variance": _name(argument(node, "running_var"))}
    if norm == "group_norm":
        bindings["groups"] = argument(node, "num_groups")
    if norm == "rms_norm":
        bindings["weight_offset"] = offset
    return _site(node, (node,), node.args[0], norm, bindings)  # type: ignore[arg-type]


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


def _epsilon(node: fx.Node) -> float:
    for name in ("eps", "epsilon"):
        given = _stored(node, name)
        if given is not None:
            return float(given)
    return float(torch.finfo(value(node).dtype).eps)


@dataclass(frozen=True)
class RmsNorm:
    """x * rsqrt(mean(x ** 2) + epsilon) * (weight_offset + weight), as ATen nodes."""

    x: fx.Node
    weight: fx.Node | None
    weight_offset: float
    epsilon: float
    nodes: tuple[fx.Node, ...]
    output: fx.Node

    def bindings(self) -> dict[str, Any]:
        """What the norm site promises for an RMS norm."""
        sizes = {"epsilon": self.epsilon, "weight_offset": self.weight_offset}
        return {"weight": _name(self.weight), "bias": None, **sizes}


def match_rms_norm(rsqrt: fx.Node) -> RmsNorm | Refusal | None:
    """The RMS norm around a reciprocal square root, a refusal, or None when it is none.

    Casts inside, as models in half precision have them, are part of the match.
    """
    shifted = operands(rsqrt)[0]
    if not is_call(shifted, aten.add.Tensor) or (epsilon := scalar(operands(shifted)[1])) is None:
        return None
    mean = operands(shifted)[0]
    if not is_call(mean, aten.mean.dim):
        return None
    squared = operands(mean)[0]
    x = _squared_value(squared)
    if x is None:
        return None
    rank = value(x).dim()
    if [dim % rank for dim in argument(mean, "dim")] != [rank - 1] or not argument(mean, "keepdim"):
        return refusal("norm", "the mean is not over the last dim", mean)
    scaled = next((user for user in rsqrt.users if is_call(user, aten.mul.Tensor) and x in user.args), None)
    if scaled is None or len(rsqrt.users) != 1:
        return refusal("norm", "the reciprocal root is not used for x alone", rsqrt)
    inner = [squared, mean, shifted, rsqrt, scaled]
    weighted = _weighted(scaled)
    if weighted is None:
        return RmsNorm(x, None, 0.0, epsilon, in_graph_order(inner), scaled)
    output, weight, offset, extra = weighted
    return RmsNorm(x, weight, offset, epsilon, in_graph_order([*inner, *extra, output]), output)


def _squared_value(squared: Any) -> fx.Node | None:
    """x of `pow(x, 2)` or `x * x`."""
    if (is_call(squared, aten.pow.Tensor_Scalar) and operands(squared)[1] == 2) or (
        is_call(squared, aten.mul.Tensor) and squared.args[0] is squared.args[1]
    ):
        found = operands(squared)[0]
    else:
        return None
    return found if isinstance(found, fx.Node) else None


def _weighted(scaled: fx.Node) -> tuple[fx.Node, fx.Node, float, list[fx.Node]] | None:
    """The product of the normed value with a stored vector: output, weight, offset and the nodes between."""
    between: list[fx.Node] = []
    node = scaled
    while len(node.users) == 1:
        (user,) = node.users
        if is_call(user, *CASTS):
            between.append(user)
            node = user
            continue
        if not is_call(user, aten.mul.Tensor):
            return None
        left, right = operands(user)
        other = right if left is node else left
        found = _offset_weight(other)
        return None if found is None else (user, found[0], found[1], [*between, *found[2]])
    return None


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
