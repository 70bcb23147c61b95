"""Rotary position embeddings written out: x * cos + rotate_half(x) * sin, and each half of the result on its own.

    rotate_half(x) = cat(-x[n:], x[:n])      or, where pairs are neighbours,  stack(-x[1::2], x[0::2]).flatten()
    cat(a * cos - b * sin, b * cos + a * sin)                             or  stack(...).flatten()

Source: Su et al. 2021, arXiv:2104.09864, eq. 34; the first form is GPT-NeoX's and transformers', `interleaved` GPT-J's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from compiler.patterns import (
    RESHAPES,
    argument,
    aten,
    has_tensor,
    in_graph_order,
    is_call,
    only_user,
    operands,
    same_shape,
    static_size,
    value,
)
from compiler.sites.names import refusal
from compiler.sites.site import Refusal
from compiler.sites.spans import SPLITS, Span, span_of

KIND = "rotary embedding"


@dataclass(frozen=True)
class RotaryEmbedding:
    """One match: x with its first `width` numbers a head turned gives `output`.

    `cos` and `sin` broadcast against those numbers, or, where they are `of_pairs`, against half of them.
    """

    output: fx.Node
    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    width: int
    interleaved: bool
    of_pairs: bool
    nodes: tuple[fx.Node, ...]


class Joined(NamedTuple):
    """Two values side by side in the last dim, or, where `interleaved`, in turn; and the nodes that join them."""

    first: fx.Node
    second: fx.Node
    interleaved: bool
    nodes: tuple[fx.Node, ...]


class Turn(NamedTuple):
    """What was found before it is known how far the embedding reaches: `x` is turned and becomes `output`."""

    output: fx.Node
    span: Span
    x: fx.Node | None
    cos: fx.Node
    sin: fx.Node
    interleaved: bool
    of_pairs: bool
    nodes: tuple[fx.Node, ...]


def match_rotary_embedding(node: fx.Node) -> RotaryEmbedding | Refusal | None:
    """The rotary embedding whose two halves are joined at `node`; a refusal; or None where there is none."""
    joined = _joined(node)
    if joined is None:
        return None
    turn = _from_quarter_turn(node, joined) or _from_products(node, joined)
    return _checked(turn) if isinstance(turn, Turn) else turn


def _joined(node: fx.Node) -> Joined | None:
    """cat((first, second), -1), or stack((first, second), -1) with its last two dims made one."""
    if is_call(node, aten.cat.default):
        interleaved, join = False, node
    elif is_call(node, *RESHAPES) and is_call(node.args[0], aten.stack.default):
        interleaved, join = True, operands(node)[0]
    else:
        return None
    parts = argument(join, "tensors")
    if len(parts) != 2 or not same_shape(*parts) or argument(join, "dim") not in (-1, value(join).dim() - 1):
        return None
    first, second = parts
    if value(node).dim() != value(first).dim() or static_size(node, -1) is None:
        return None
    return Joined(first, second, interleaved, in_graph_order([join, node]))


def _from_quarter_turn(node: fx.Node, joined: Joined) -> Turn | Refusal | None:
    """x * cos + rotate_half(x) * sin, where `node` is rotate_half(x)."""
    if not is_call(joined.first, aten.neg.default):
        return None
    span = _pairs(joined.second, operands(joined.first)[0], joined.interleaved)
    if span is None:
        return None
    product = only_user(node)
    output = only_user(product) if product is not None else None
    if product is None or output is None:
        return refusal(KIND, "an inner value has other users", node if product is None else product)
    other = _other_operand(output, product, aten.add.Tensor)
    sin = _other_operand(product, node, aten.mul.Tensor)
    if sin is None or not is_call(other, aten.mul.Tensor) or other is product or argument(output, "alpha") != 1:
        return refusal(KIND, "the turned half is not added as x * cos + rotate_half(x) * sin", node)
    assert other is not None
    x = next((item for item in operands(other) if has_tensor(item) and span_of(item) == span), None)
    cos = _other_operand(other, x, aten.mul.Tensor)
    if x is None or cos is None:
        return refusal(KIND, "what is multiplied with cos is not what was turned", other)
    if only_user(other) is None:
        return refusal(KIND, "an inner value has other users", other)
    nodes = (*joined.nodes, joined.first, product, other, output)
    return Turn(output, span, x, cos, sin, joined.interleaved, False, nodes)


def _from_products(node: fx.Node, joined: Joined) -> Turn | None:
    """a * cos - b * sin beside b * cos + a * sin."""
    lower, upper = joined.first, joined.second
    if not is_call(lower, aten.sub.Tensor) or not is_call(upper, aten.add.Tensor):
        return None
    products = [item for half in (lower, upper) for item in operands(half)[:2]]
    exclusive = all(only_user(item) for item in (lower, upper, *products) if isinstance(item, fx.Node))
    if not all(is_call(item, aten.mul.Tensor) for item in products) or not exclusive:
        return None
    for first, cos in _orders(products[0]):
        for second, sin in _orders(products[1]):
            wanted = ({second, cos}, {first, sin})
            found = [set(operands(item)) for item in products[2:]]
            span = _pairs(first, second, joined.interleaved)
            if found in ([*wanted], [*reversed(wanted)]) and span is not None and _plain(lower) and _plain(upper):
                nodes = (*products, lower, upper, *joined.nodes)
                return Turn(node, span, None, cos, sin, joined.interleaved, True, nodes)
    return None


def _checked(turn: Turn) -> RotaryEmbedding | Refusal:
    """The match with the numbers of a head that stay as they are, if it is one that the operator can say."""
    output = turn.output
    x = turn.x or _whole(turn.span)
    if x is None:
        return refusal(KIND, "what is turned is no value of its own", output)
    for angles in (turn.cos, turn.sin):
        if not has_tensor(angles):
            return refusal(KIND, "cos and sin are not tensors", output)
    if value(x).dim() != 4:
        return refusal(KIND, "x is not [batch, heads, tokens, head_dim]", output)
    if not same_shape(x, output) or value(x).dtype != value(output).dtype:
        return refusal(KIND, "the result has another shape or dtype than x", output)
    width = turn.span.stop - turn.span.start
    nodes = turn.nodes
    last = only_user(output)
    partial = _with_the_rest(last, output, turn.span, x) if last is not None else None
    if partial is not None:
        output, x = partial
        nodes = (*nodes, output)
    return RotaryEmbedding(output, x, turn.cos, turn.sin, width, turn.interleaved, turn.of_pairs, in_graph_order(nodes))


def _with_the_rest(join: fx.Node, turned: fx.Node, span: Span, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """cat(turned x[:width], x[width:]) and x, when `join` puts what follows in the head behind what was turned."""
    if not is_call(join, aten.cat.default) or argument(join, "dim") not in (-1, value(join).dim() - 1):
        return None
    parts = argument(join, "tensors")
    rest = span_of(parts[1]) if len(parts) == 2 and parts[0] is turned else None
    if rest is None:
        return None
    if value(parts[1]).shape[-1] == 0:
        return join, x
    whole = _cut_from(x)
    if whole is None or not same_shape(whole, join):
        return None
    start, stop = span_of(whole).start, span_of(whole).stop
    fits = rest == Span(span.source, span.stop, stop, 1) and start == span.start
    return (join, whole) if fits else None


def _cut_from(node: fx.Node) -> fx.Node | None:
    """The value that `node` is a slice, a chunk or a part of."""
    source = node.args[0]
    if isinstance(source, fx.Node) and not has_tensor(source):
        source = source.args[0]
    return source if isinstance(source, fx.Node) else None


def _whole(span: Span) -> fx.Node | None:
    """The node that is just this span, where the graph has one."""
    if span_of(span.source) == span:
        return span.source
    waiting = [span.source]
    while waiting:
        for user in waiting.pop().users:
            if has_tensor(user) and span_of(user) == span:
                return user
            if is_call(user, *SPLITS, aten.slice.Tensor):
                waiting.append(user)
    return None


def _pairs(first: fx.Node, second: fx.Node, interleaved: bool) -> Span | None:
    """The span whose even numbers, or first half, `first` is, and whose odd numbers, or second half, `second` is."""
    if not has_tensor(first) or not has_tensor(second):
        return None
    left, right = span_of(first), span_of(second)
    if left.source is not right.source:
        return None
    width = 2 * int(value(first).shape[-1])
    whole = Span(left.source, left.start, left.start + width, 1)
    if interleaved:
        wanted = (whole._replace(step=2), whole._replace(start=whole.start + 1, step=2))
    else:
        middle = whole.start + width // 2
        wanted = (whole._replace(stop=middle), whole._replace(start=middle))
    return whole if (left, right) == wanted else None


def _orders(product: fx.Node) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    left, right = operands(product)[:2]
    return (left, right), (right, left)


def _plain(total: fx.Node) -> bool:
    return bool(argument(total, "alpha") == 1)


def _other_operand(node: fx.Node, one: fx.Node | None, target: torch._ops.OpOverload) -> fx.Node | None:
    """The operand beside `one` of a call of `target`; None where it is another call or no tensor."""
    if one is None or not is_call(node, target):
        return None
    left, right = operands(node)[:2]
    other = right if left is one else left
    return other if has_tensor(other) else None
