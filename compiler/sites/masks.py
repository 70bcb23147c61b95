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
    same_size,
    scalar,
    upstream,
    value,
)
from compiler.program import attribute
from compiler.sites.index_arithmetic import IndexExpression, index_expression


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
        compared = _comparison(node)
        return compared if compared and (compared.always_true or _spans_both(node)) else _opaque(node)
    if is_call(node, aten.tril.default) and constant_fill(operands(node)[0]) == 1 and _spans_both(node):
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
    if is_call(node, aten.triu.default) and _is_minus_infinity(operands(node)[0], node) and _spans_both(node):
        return Mask(highest=argument(node, "diagonal") - 1)
    if (source := _passed_on(node)) is not None:
        return _additive(source)
    return _opaque(node)


def _stored(node: fx.Node) -> Mask | None:
    """What a constant mask allows, as folding leaves one: everything, or the keys up to each token; otherwise None."""
    if node.op != "get_attr" or node.graph.owning_module is None:
        return None
    mask = attribute(node.graph.owning_module, str(node.target))
    if not isinstance(mask, torch.Tensor) or isinstance(mask, torch.nn.Parameter) or mask.dim() < 2:
        return None
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(value(node).dtype).min
    if mask.dtype != torch.bool and not bool((mask[allowed] == 0).all()):
        return None
    if bool(allowed.all()):
        return Mask()
    triangle = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    return Mask(highest=0) if _spans_both(node) and torch.equal(allowed, triangle.expand_as(allowed)) else None


def _opaque(node: fx.Node) -> Mask:
    """A mask that index arithmetic does not explain: from an input or boolean it is padding, a floating one a bias."""
    if (stored := _stored(node)) is not None:
        return stored
    reads_input = any(
        source.op == "placeholder" for source in upstream(node, lambda source: is_call(source, aten.sym_size.int))
    )
    is_boolean = value(node).dtype == torch.bool
    return Mask(padding=reads_input or is_boolean, bias=not is_boolean)


def _spans_both(node: fx.Node) -> bool:
    """Whether the last two dims are tokens and keys: a size of 1 may be broadcast, and then it counts nothing."""
    shape = value(node).shape
    return len(shape) >= 2 and all(not isinstance(size, int) or size != 1 for size in shape[-2:])


def _passed_on(node: fx.Node) -> fx.Node | None:
    """The source of a node that repeats, casts or reshapes without moving the last two dims."""
    if not is_call(node, *CASTS, *COPIES, aten.expand.default, aten.unsqueeze.default, aten.reshape.default):
        return None
    source = operands(node)[0]
    if is_call(node, aten.unsqueeze.default, aten.reshape.default) and value(source).dim() >= 2:
        kept = all(same_size(value(node).shape[dim], value(source).shape[dim]) for dim in (-1, -2))
        return source if kept else None
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
    aten.eq.Tensor: "eq",
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
        distance = index_expression(operands(left)[0])
        reach = right - (order == "lt")
        return None if distance is None else _band(distance, -reach, reach)
    ours, theirs = index_expression(left), index_expression(right)
    if ours is None or theirs is None:
        return None
    difference = ours.minus(theirs)
    low = {"ge": 0, "gt": 1, "eq": 0}.get(order)
    high = {"le": 0, "lt": -1, "eq": 0}.get(order)
    return _band(difference, low, high)


def _band(expression: IndexExpression, low: int | None, high: int | None) -> Mask | None:
    """The mask that lets through where `low` <= expression <= `high`."""
    if (expression.query, expression.key) == (1, -1):
        expression = IndexExpression(-1, 1, -expression.constant)
        low, high = (None if high is None else -high), (None if low is None else -low)
    low = None if low is None else low - expression.constant
    high = None if high is None else high - expression.constant
    if (expression.query, expression.key) == (-1, 1):
        return Mask(low, high)
    if (expression.query, expression.key) == (0, 0):
        return Mask() if (low is None or low <= 0) and (high is None or high >= 0) else None
    single = (expression.query, expression.key) in ((1, 0), (0, 1))
    return Mask() if single and high is None and (low is None or low <= 0) else None
