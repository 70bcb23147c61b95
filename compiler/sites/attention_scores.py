"""Reads eager attention backwards from its softmax: scale, softcap, masks, and the product of query and key.

    softmax(softcap(query @ key.T * scale) + mask) @ value

Exporters of ONNX write (query * sqrt(scale)) @ (key.T * sqrt(scale)), and put 0 where the softmax is not a number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from compiler.patterns import (
    CASTS,
    COPIES,
    DROPOUTS,
    argument,
    aten,
    constant_fill,
    has_tensor,
    is_call,
    only_user,
    operands,
    permutation,
    same_size,
    scalar,
    upstream,
    value,
)

PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default, aten.baddbmm.default})
SOFTMAXES = frozenset({aten.softmax.int, aten._softmax.default})
PASSING = CASTS | COPIES | DROPOUTS | {aten.reshape.default, aten.view.default}
SCORE_STEPS = PASSING | {
    aten.add.Tensor,
    aten.div.Tensor,
    aten.masked_fill.Scalar,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.tanh.default,
    aten.where.ScalarOther,
    aten.where.self,
}


class NearMissError(Exception):
    """Why nodes that look like attention are none, and the node at fault."""

    def __init__(self, reason: str, node: fx.Node) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node


@dataclass
class Scores:
    """What stands between a product of query and key and its softmax. `masks` are added or, boolean, select.

    `merged` says of each mask whether it has batch and heads in one dim, as [batch * heads, tokens, keys].
    """

    query: fx.Node
    key: fx.Node
    scale: float
    softcap: float
    masks: list[fx.Node] = field(default_factory=list)
    merged: list[bool] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)

    def add_mask(self, mask: fx.Node, applied_at: fx.Node) -> None:
        """Note a mask that `applied_at` brings in. Raises NearMissError when scores are scaled or capped after it."""
        if self.scale != 1:
            raise NearMissError("a mask is applied before the scores are scaled", applied_at)
        if self.softcap:
            raise NearMissError("a mask is applied before the softcap", applied_at)
        self.masks.append(mask)
        self.merged.append(value(applied_at).dim() == 3)


def read_scores(softmax: fx.Node) -> Scores | None:
    """What leads to `softmax`, or None when no product of two activations does. Raises NearMissError."""
    start = operands(softmax)[0]
    if not _leads_to_product(start):
        return None
    rank = value(softmax).dim()
    if argument(softmax, "dim") % rank != rank - 1:
        raise NearMissError("softmax is not over the last dim", softmax)
    scores = Scores(start, start, 1.0, 0.0, nodes=[softmax])
    node = start
    while not is_call(node, *PRODUCTS):
        if only_user(node) is None:
            raise NearMissError("the scores are read elsewhere too", node)
        scores.nodes.append(node)
        node = _step(node, scores)
    if only_user(node) is None:
        raise NearMissError("the scores are read elsewhere too", node)
    scores.nodes.append(node)
    _read_product(node, scores)
    return scores


def read_values(softmax: fx.Node) -> tuple[fx.Node, fx.Node, list[fx.Node]] | None:
    """The product of the weights with the values: output, value, and the nodes on the way; None when there is none."""
    node, passed = softmax, []
    while (user := _passing_user(node)) is not None:
        passed.append(user)
        node = user
    if (guarded := _without_nan(node)) is not None:
        passed += guarded
        node = guarded[-1]
    products = [user for user in node.users if is_call(user, *PRODUCTS) and operands(user)[0] is node]
    if not products:
        return None
    if len(node.users) > 1:
        raise NearMissError("the attention weights are read elsewhere too", node)
    (product,) = products
    if is_call(product, aten.baddbmm.default):
        raise NearMissError("the values are added to something", product)
    return product, operands(product)[1], passed


def four_dimensional(node: fx.Node, role: str) -> fx.Node:
    """`node` as [batch, heads, tokens, head_dim]: itself, or what was reshaped to [batch * heads, tokens, head_dim]."""
    if value(node).dim() == 4:
        return node
    if value(node).dim() == 3 and is_call(node, aten.reshape.default, aten.view.default):
        (source, *_) = operands(node)
        whole, merged = value(source), value(node)
        if whole.dim() == 4 and all(same_size(whole.shape[dim], merged.shape[dim]) for dim in (-1, -2)):
            return source  # type: ignore[no-any-return]
    raise NearMissError(f"the {role} is not [batch, heads, tokens, head_dim]", node)


def _leads_to_product(node: Any) -> bool:
    """Whether scaling, masking or capping leads from a product of activations to `node`."""
    return isinstance(node, fx.Node) and any(
        is_call(source, *PRODUCTS) for source in upstream(node, lambda found: not is_call(found, *SCORE_STEPS))
    )


def _step(node: fx.Node, scores: Scores) -> fx.Node:
    """Take what `node` does to the scores into account; the node before it."""
    if is_call(node, *PASSING):
        return operands(node)[0]  # type: ignore[no-any-return]
    if is_call(node, aten.add.Tensor) and argument(node, "alpha") == 1:
        return _step_add(node, scores)
    if is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return _step_scale(node, scores)
    if is_call(node, aten.where.self, aten.where.ScalarOther):
        condition, kept, filled = operands(node)
        if scalar(filled) == -torch.inf and _leads_to_product(kept):
            scores.add_mask(condition, node)
            return kept  # type: ignore[no-any-return]
        raise NearMissError("scores are replaced by other than minus infinity: fully masked rows would differ", node)
    raise NearMissError(f"{node.target} stands between the product and its softmax", node)


def _step_add(node: fx.Node, scores: Scores) -> fx.Node:
    left, right = operands(node)
    from_left, from_right = _leads_to_product(left), _leads_to_product(right)
    if from_left and from_right:
        raise NearMissError("two products are added", node)
    kept, mask = (left, right) if from_left else (right, left)
    if not has_tensor(mask):
        raise NearMissError("a number is added to the scores", node)
    scores.add_mask(mask, node)
    return kept  # type: ignore[no-any-return]


def _step_scale(node: fx.Node, scores: Scores) -> fx.Node:
    left, right = operands(node)
    multiplies = is_call(node, aten.mul.Tensor)
    kept, number = (left, scalar(right))
    if multiplies and number is None:
        kept, number = (right, scalar(left))
    if number is None or number == 0:
        raise NearMissError("the scores are scaled by something other than a number", node)
    if multiplies and is_call(kept, aten.tanh.default):
        return _step_softcap(kept, number, scores)
    scores.scale *= number if multiplies else 1 / number
    return kept  # type: ignore[no-any-return]


def _step_softcap(tanh: fx.Node, cap: float, scores: Scores) -> fx.Node:
    """cap * tanh(scores / cap)."""
    if scores.scale != 1 or scores.softcap:
        raise NearMissError("the capped scores are scaled again", tanh)
    inner = operands(tanh)[0]
    divisor = scalar(operands(inner)[1]) if is_call(inner, aten.div.Tensor, aten.mul.Tensor) else None
    if divisor is not None and is_call(inner, aten.mul.Tensor):
        divisor = 1 / divisor if divisor else None
    if divisor is None or abs(divisor - cap) > 1e-6 * abs(cap):
        raise NearMissError("tanh is not a softcap: it does not divide by what it multiplies with", tanh)
    scores.softcap = cap
    scores.nodes += [tanh, inner]
    return operands(inner)[0]  # type: ignore[no-any-return]


def _read_product(product: fx.Node, scores: Scores) -> None:
    query, turned = operands(product)[-2:]
    if is_call(product, aten.baddbmm.default):
        query, turned = operands(product)[1:3]
        beta, alpha = argument(product, "beta"), argument(product, "alpha")
        if beta != 0:
            if beta != 1:
                raise NearMissError(f"the bias is multiplied by {beta}", product)
            scores.add_mask(operands(product)[0], product)
        scores.scale *= alpha
    query, turned = _without_shared_scale(query, turned, scores)
    order = permutation(turned)
    rank = value(turned).dim()
    if order != (*range(rank - 2), rank - 1, rank - 2):
        raise NearMissError("the key is not transposed in its last two dims", product)
    scores.nodes.append(turned)
    scores.query = four_dimensional(query, "query")
    scores.key = four_dimensional(operands(turned)[0], "key")
    scores.nodes += [node for node in (query, operands(turned)[0]) if value(node).dim() == 3]


def _without_shared_scale(query: fx.Node, turned: fx.Node, scores: Scores) -> tuple[fx.Node, fx.Node]:
    """What query and key were before both were multiplied by one number, the root of the scale."""
    ours, theirs = _scaled(query), _scaled(turned)
    if ours is None or theirs is None or abs(ours[1] - theirs[1]) > 1e-6 * abs(ours[1]):
        return query, turned
    scores.scale *= ours[1] * theirs[1]
    scores.nodes += [query, turned]
    return ours[0], theirs[0]


def _scaled(node: fx.Node) -> tuple[fx.Node, float] | None:
    """x and the number, when `node` is x times a number that is not 0."""
    if not is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return None
    left, right = operands(node)
    if is_call(node, aten.div.Tensor):
        number = scalar(right)
        return (left, 1 / number) if number else None
    for x, factor in ((left, right), (right, left)):
        if has_tensor(x) and (number := scalar(factor)):
            return x, number
    return None


def _without_nan(weights: fx.Node) -> list[fx.Node] | None:
    """The nodes isnan and where, when all that reads `weights` is where(isnan(weights), 0, weights)."""
    if len(weights.users) != 2:
        return None
    check = next((user for user in weights.users if is_call(user, aten.isnan.default)), None)
    if check is None or (chosen := only_user(check)) is None:
        return None
    if chosen not in weights.users or not is_call(chosen, aten.where.self, aten.where.ScalarSelf):
        return None
    condition, filled, kept = operands(chosen)
    number = constant_fill(filled) if has_tensor(filled) else scalar(filled)
    return [check, chosen] if condition is check and kept is weights and number == 0 else None


def _passing_user(node: fx.Node) -> fx.Node | None:
    user = only_user(node)
    return user if user is not None and is_call(user, *PASSING) else None
