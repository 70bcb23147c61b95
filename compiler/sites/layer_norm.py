"""Layer norms written out: (x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + epsilon) * weight + bias.

ONNX had no operator for them before opset 17, and exporters still write them so.
Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from compiler.patterns import (
    argument,
    aten,
    has_tensor,
    in_graph_order,
    is_call,
    only_user,
    operands,
    same_size,
    static_size,
    value,
)
from compiler.sites.names import refusal
from compiler.sites.rms_norm import centered, inverse_root, scales, squared
from compiler.sites.site import Refusal


@dataclass(frozen=True)
class LayerNorm:
    """One match: the value to normalise, its 1-d weight and bias (or none), epsilon, and the node to replace."""

    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    epsilon: float
    output: fx.Node
    nodes: tuple[fx.Node, ...]


def match_layer_norm(node: fx.Node) -> LayerNorm | Refusal | None:
    """The layer norm whose variance is `node`, a refusal, or None."""
    square = operands(node)[0] if is_call(node, aten.mean.dim) else None
    difference = squared(square)
    x = None if difference is None else centered(difference)
    root = None if x is None else inverse_root(node)
    if square is None or difference is None or x is None or root is None:
        return None
    added, roots, epsilon = root
    normal = next((user for user in roots[-1].users if scales(user, difference, roots[-1])), None)
    if normal is None:
        return None
    mean = operands(difference)[1]
    if not all(_is_over_last_dim(one, value(x).dim()) for one in (mean, node)):
        return refusal("norm", "the mean is not over the last dim alone", node)
    if static_size(x, -1) is None:
        return refusal("norm", "the width varies", node)
    inner = (mean, square, node, added, *roots)
    crowded = next((part for part in inner if only_user(part) is None), None)
    if crowded is None and not set(difference.users) <= {square, normal}:
        crowded = difference
    if crowded is not None:
        return refusal("norm", "an inner value has other users", crowded)
    weight, scaled = _beside(normal, aten.mul.Tensor)
    bias, output = _beside(scaled, aten.add.Tensor)
    nodes = in_graph_order([*inner, difference, normal, scaled, output])
    return LayerNorm(x, weight, bias, epsilon, output, nodes)


def _is_over_last_dim(mean: fx.Node, rank: int) -> bool:
    return list(argument(mean, "dim")) in ([-1], [rank - 1]) and bool(argument(mean, "keepdim"))


def _beside(node: fx.Node, target: Any) -> tuple[fx.Node | None, fx.Node]:
    """The vector that the only user of `node` takes beside it, and that user; None and `node` where there is none."""
    user = only_user(node)
    if user is None or not is_call(user, target) or user.kwargs:
        return None, node
    left, right = operands(user)
    vector = right if left is node else left
    fits = has_tensor(vector) and value(vector).dim() == 1 and value(vector).dtype == value(node).dtype
    return (vector, user) if fits and same_size(value(vector).shape[0], value(node).shape[-1]) else (None, node)
