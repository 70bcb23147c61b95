"""What an attention mask allows, read off the nodes that compute it: proven from index arithmetic, not guessed.

Masks are built from `arange`s that are compared: `key <= query` is causal, `key > query - 8` a window. Each boolean
node is described by the band of `key - query` that it lets through, and by whether it looks at data as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from compiler.patterns import (
    CASTS,
    COPIES,
    argument,
    aten,
    constant_fill,
    has_tensor,
    is_call,
    operands,
    permutation,
    same_shape,
    scalar,
    upstream,
    value,
)

QUERY, KEY = -2, -1


@dataclass(frozen=True)
class Mask:
    """Token i may attend to key j where `lowest` <= j - i <= `highest` (None: no limit), and where the rest allows it.

    `padding`: it depends on an input. `bias`: it may add numbers other than 0 and minus infinity.
    """

    lowest: int | None = None
    highest: int | None = None
    padding: bool = False
    bias: bool = False

    @property
    def always_true(self) -> bool:
        """Whether every token may attend to every key."""
        return self == Mask()

    @property
    def only_causal(self) -> bool:
        """Whether token i may attend to keys 0 to i, and that is all."""
        return self == Mask(highest=0)

    @property
    def causal(self) -> bool:
        """Whether no token attends to a later key."""
        return self.highest is not None and self.highest <= 0

    @property
    def kind(self) -> str:
        """`none`, or what the mask is made of, as in `causal+padding`; a band other than causal is a `window`."""
        causal = self.lowest is None and self.highest == 0
        free = self.lowest is None and self.highest is None
        parts = [
            "causal" if causal else "" if free else "window",
            "padding" if self.padding else "",
            "bias" if self.bias else "",
        ]
        return "+".join(part for part in parts if part) or "none"

    def both(self, other: Mask) -> Mask:
        """What is allowed by both."""
        lows = [limit for limit in (self.lowest, other.lowest) if limit is not None]
        highs = [limit for limit in (self.highest, other.highest) if limit is not None]
        return Mask(
            max(lows, default=None),
            min(highs, default=None),
            self.padding or other.padding,
            self.bias or other.bias,
        )


def describe_mask(node: fx.Node) -> Mask:
    """What a boolean (True: attend) or additive mask of shape [..., tokens, keys] allows."""
    if value(node).dtype == torch.bool:
        return _boolean(node)
    return _additive(node)


def _boolean(node: fx.Node) -> Mask:
    if constant_fill(node) == 1:
        return Mask()
    if is_call(node, aten.bitwise_and.Tensor, aten.__and__.Tensor, aten.logical_and.default):
        left, right = operands(node)
        return _boolean(left).both(_boolean(right))
    if is_call(node, *COMPARISONS):
        return _comparison(node) or _opaque(node)
    if is_call(node, aten.tril.default) and constant_fill(operands(node)[0]) == 1:
        return Mask(highest=argument(node, "diagonal"))
    if (source := _passed_on(node)) is not None:
        return _boolean(source)
    return _opaque(node)


def _additive(node: fx.Node) -> Mask:
    if constant_fill(node) == 0:
        return Mask()
    if is_call(node, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar):
        condition, allowed, forbidden = operands(node)
        if _is_minus_infinity(forbidden, node):
            rest = _additive(allowed) if has_tensor(allowed) else Mask(bias=allowed != 0)
            return _boolean(condition).both(rest)
    if is_call(node, aten.add.Tensor) and argument(node, "alpha") == 1:
        left, right = operands(node)
        if has_tensor(left) and has_tensor(right):
            return _additive(left).both(_additive(right))
    if is_call(node, aten.triu.default) and _is_minus_infinity(operands(node)[0], node):
        return Mask(highest=argument(node, "diagonal") - 1)
    if (source := _passed_on(node)) is not None:
        return _additive(source)
    return _opaque(node)


def _opaque(node: fx.Node) -> Mask:
    """A mask that index arithmetic does not explain: from an input or boolean it is padding, a floating one a bias."""
    reads_input = any(
        source.op == "placeholder" for source in upstream(node, lambda source: is_call(source, aten.sym_size.int))
    )
    is_boolean = value(node).dtype == torch.bool
    return Mask(padding=reads_input or is_boolean, bias=not is_boolean)


def _passed_on(node: fx.Node) -> fx.Node | None:
    """The source of a node that repeats, casts or reshapes without moving the last two dims."""
    if not is_call(node, *CASTS, *COPIES, aten.expand.default, aten.unsqueeze.default, aten.reshape.default):
        return None
    (source, *_) = operands(node)
    if is_call(node, aten.unsqueeze.default, aten.reshape.default) and value(source).dim() >= 2:
        return source if value(node).shape[-2:] == value(source).shape[-2:] else None
    same_make = value(source).is_floating_point() == value(node).is_floating_point()
    return source if same_make and value(source).dim() >= 2 else None


def _number(item: Any) -> float | None:
    return constant_fill(item) if has_tensor(item) else scalar(item)


def _is_minus_infinity(item: Any, like: fx.Node) -> bool:
    """Whether `item` is so low that softmax gives exactly 0 beside any other score."""
    number = _number(item)
    return number is not None and number <= torch.finfo(value(like).dtype).min


COMPARISONS = {
    aten.le.Tensor: "le",
    aten.lt.Tensor: "lt",
    aten.ge.Tensor: "ge",
    aten.gt.Tensor: "gt",
    aten.le.Scalar: "le",
    aten.lt.Scalar: "lt",
    aten.ge.Scalar: "ge",
    aten.gt.Scalar: "gt",
}


def _comparison(node: fx.Node) -> Mask | None:
    """The band of an order between index expressions, or None where they are no such."""
    left, right = operands(node)
    order = COMPARISONS[node.target]  # type: ignore[index]
    if is_call(left, aten.abs.default) and isinstance(right, int) and order in ("le", "lt"):
        distance = _index_expression(operands(left)[0])
        reach = right - (order == "lt")
        return None if distance is None else _band(distance, -reach, reach)
    ours, theirs = _index_expression(left), _index_expression(right)
    if ours is None or theirs is None:
        return None
    difference = ours.minus(theirs)
    low = {"ge": 0, "gt": 1}.get(order)
    high = {"le": 0, "lt": -1}.get(order)
    return _band(difference, low, high)


@dataclass(frozen=True)
class _Index:
    """`query` times the index along dim -2, plus `key` times the index along dim -1, plus `constant`."""

    query: int = 0
    key: int = 0
    constant: int = 0

    def minus(self, other: _Index) -> _Index:
        return _Index(self.query - other.query, self.key - other.key, self.constant - other.constant)


def _band(expression: _Index, low: int | None, high: int | None) -> Mask | None:
    """The mask that lets through where `low` <= expression <= `high`."""
    if (expression.query, expression.key) == (1, -1):
        expression = _Index(-1, 1, -expression.constant)
        low, high = (None if high is None else -high), (None if low is None else -low)
    low = None if low is None else low - expression.constant
    high = None if high is None else high - expression.constant
    if (expression.query, expression.key) == (-1, 1):
        return Mask(low, high)
    single = (expression.query, expression.key) in ((1, 0), (0, 1))
    return Mask() if single and high is None and (low is None or low <= 0) else None


def _index_expression(item: Any) -> _Index | None:
    """`item` as indices along the last two dims: what `arange`, moved to one of them, counts."""
    if isinstance(item, int) and not isinstance(item, bool):
        return _Index(constant=item)
    if not isinstance(item, fx.Node) or not has_tensor(item):
        return None
    if is_call(item, aten.add.Tensor, aten.sub.Tensor) and argument(item, "alpha") == 1:
        left, right = (_index_expression(operand) for operand in operands(item))
        if left is None or right is None:
            return None
        negated = _Index().minus(right)
        return left.minus(right if is_call(item, aten.sub.Tensor) else negated)
    dim = counted_dim(item)
    if dim == QUERY:
        return _Index(query=1)
    return _Index(key=1) if dim == KEY else None


def counted_dim(node: fx.Node) -> int | None:
    """The dim, counted from the last as -1, along which `node` holds 0, 1, 2, ...; None when it is no such count."""
    rank = value(node).dim()
    if is_call(node, aten.arange.default):
        return -1 if isinstance(value(node).shape[0], (int, torch.SymInt)) else None
    if is_call(node, aten.arange.start, aten.arange.start_step):
        starts = argument(node, "start") == 0 and (is_call(node, aten.arange.start) or argument(node, "step") == 1)
        return -1 if starts else None
    if not is_call(node, *CASTS, *COPIES, aten.expand.default, aten.unsqueeze.default, aten.reshape.default):
        order = permutation(node)
        inner = counted_dim(operands(node)[0]) if order is not None else None
        return None if order is None or inner is None else order.index(inner % rank) - rank
    (source, *_) = operands(node)
    if not has_tensor(source) or value(node).is_floating_point() or (inner := counted_dim(source)) is None:
        return None
    if is_call(node, aten.unsqueeze.default):
        added = argument(node, "dim") % rank - rank
        return inner - 1 if inner <= added else inner
    if is_call(node, aten.reshape.default) and not same_shape(node, source):
        long = [dim for dim, size in enumerate(value(node).shape) if size != 1]
        return long[0] - rank if len(long) == 1 else None
    return inner
