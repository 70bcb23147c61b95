"""RMS norms written out: x * rsqrt(mean(x ** 2) + epsilon) * weight, in the orders and with the casts that models use.

Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
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
    has_tensor,
    in_graph_order,
    is_call,
    only_user,
    operands,
    same_size,
    scalar,
    value,
)
from compiler.sites.names import refusal
from compiler.sites.site import Refusal


@dataclass(frozen=True)
class RmsNorm:
    """One match: the value to normalise, its 1-d weight (stored or computed), epsilon, and the node to replace."""

    x: fx.Node
    weight: fx.Node
    epsilon: float
    output: fx.Node
    nodes: tuple[fx.Node, ...]


def match_rms_norm(node: fx.Node) -> RmsNorm | Refusal | None:
    """The RMS norm whose mean is `node`, or that `node` is in one operator of aten's; a refusal; or None."""
    if is_call(node, aten.rms_norm.default):
        return _match_operator(node)
    square = operands(node)[0] if is_call(node, aten.mean.dim) else None
    x = squared(square)
    if square is None or x is None or centered(x) is not None:
        return None
    root = inverse_root(node)
    if root is None:
        return None
    added, roots, epsilon = root
    inverse = roots[-1]
    normal = next((user for user in inverse.users if scales(user, x, inverse)), None)
    if normal is None:
        return None
    if list(argument(node, "dim")) not in ([-1], [value(x).dim() - 1]) or not argument(node, "keepdim"):
        return refusal("norm", "the mean is not over the last dim alone", node)
    inner = (square, node, added, *roots)
    crowded = next((part for part in inner if only_user(part) is None), None)
    if crowded is not None:
        return refusal("norm", "an inner value has other users", crowded)
    return _with_weight(x, normal, epsilon, inner)


def centered(node: fx.Node) -> fx.Node | None:
    """x, when `node` is x minus its mean, as in a layer norm."""
    if not is_call(node, aten.sub.Tensor) or argument(node, "alpha") != 1:
        return None
    x, mean = operands(node)
    return x if is_call(mean, aten.mean.dim) and operands(mean)[0] is x else None


def squared(node: Any) -> fx.Node | None:
    """x, when `node` is x ** 2 or x * x."""
    if is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 2:
        return operands(node)[0]  # type: ignore[no-any-return]
    if is_call(node, aten.mul.Tensor) and node.args[0] is node.args[1]:
        return operands(node)[0]  # type: ignore[no-any-return]
    return operands(node)[0] if is_call(node, aten.square.default) else None


def inverse_root(mean: fx.Node) -> tuple[fx.Node, list[fx.Node], float] | None:
    """The node of mean + epsilon, those of its rsqrt, sqrt, or sqrt and reciprocal, and epsilon."""
    added = next((user for user in mean.users if is_call(user, aten.add.Tensor, aten.add.Scalar)), None)
    if added is None or argument(added, "alpha") != 1:
        return None
    epsilon = next((scalar(item) for item in added.args if item is not mean), None)
    root = next((user for user in added.users if _is_root(user)), None)
    if epsilon is None or root is None:
        return None
    inverse = next((user for user in root.users if _is_square_root(root) and _is_inverse(user, root)), None)
    return added, [root] if inverse is None else [root, inverse], epsilon


def _is_root(node: fx.Node) -> bool:
    return _is_square_root(node) or is_call(node, aten.rsqrt.default) or _is_power(node, -0.5)


def _is_square_root(node: fx.Node) -> bool:
    return is_call(node, aten.sqrt.default) or _is_power(node, 0.5)


def _is_power(node: fx.Node, exponent: float) -> bool:
    return is_call(node, aten.pow.Tensor_Scalar) and scalar(node.args[1]) == exponent


def _is_inverse(node: fx.Node, root: fx.Node) -> bool:
    """Whether `node` is 1 / root."""
    if is_call(node, aten.div.Tensor):
        return scalar(node.args[0]) == 1 and node.args[1] is root
    return is_call(node, aten.reciprocal.default)


def scales(node: fx.Node, x: fx.Node, inverse: fx.Node) -> bool:
    """Whether `node` is x * rsqrt(...) or x / sqrt(...)."""
    if _is_square_root(inverse):
        return is_call(node, aten.div.Tensor) and node.args == (x, inverse)
    return is_call(node, aten.mul.Tensor) and node.args in ((x, inverse), (inverse, x))


def _with_weight(x: fx.Node, normal: fx.Node, epsilon: float, inner: tuple[fx.Node, ...]) -> RmsNorm | Refusal:
    """The product with the weight behind `normal`, in any order with the cast back to x's dtype."""
    x = _before_upcast(x)
    cast = only_user(normal)
    back = cast if cast is not None and is_call(cast, *CASTS) else normal
    product = only_user(back)
    if product is None:
        return refusal("norm", "an inner value has other users", back)
    if not is_call(product, aten.mul.Tensor):
        return refusal("norm", "no weight scales the result", back)
    left, right = operands(product)
    weight = right if left is back else left
    if not has_tensor(weight) or value(weight).dim() != 1:
        return refusal("norm", "the weight is not 1-d", product)
    if not same_size(value(weight).shape[0], value(x).shape[-1]):
        return refusal("norm", "the weight has another width than x", product)
    output = product
    last = only_user(product)
    if value(output).dtype != value(x).dtype and last is not None and is_call(last, *CASTS):
        output = last
    if value(output).dtype != value(x).dtype:
        return refusal("norm", "the result has another dtype than x", output)
    nodes = in_graph_order([*inner, normal, back, product, output])
    return RmsNorm(x, _before_upcast(weight), epsilon, output, nodes)


def _before_upcast(node: fx.Node) -> fx.Node:
    """What was cast up to `node`, or `node` itself: the operator computes in float32 anyway."""
    source = node.args[0] if is_call(node, *CASTS) else None
    if not isinstance(source, fx.Node) or not value(source).is_floating_point():
        return node
    return source if value(source).dtype.itemsize <= value(node).dtype.itemsize else node


def _match_operator(node: fx.Node) -> RmsNorm | Refusal:
    """aten.rms_norm(x, [width], weight, epsilon)"""
    x, weight, shape = operands(node)[0], argument(node, "weight"), argument(node, "normalized_shape")
    if len(shape) != 1:
        return refusal("norm", "the mean is not over the last dim alone", node)
    if weight is None:
        return refusal("norm", "no weight scales the result", node)
    if value(node).dtype != value(x).dtype:
        return refusal("norm", "the result has another dtype than x", node)
    epsilon = argument(node, "eps")
    given = torch.finfo(value(x).dtype).eps if epsilon is None else float(epsilon)
    return RmsNorm(x, weight, given, node, (node,))
