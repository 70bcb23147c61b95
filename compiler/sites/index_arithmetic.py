"""Integer nodes as functions of a token's and a key's index: `arange`s that are moved, added and looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    same_size,
    value,
)

QUERY, KEY = -2, -1
REPEATING = CASTS | COPIES | {aten.expand.default, aten.repeat.default}


@dataclass(frozen=True)
class IndexExpression:
    """`query` times the index along dim -2, plus `key` times the index along dim -1, plus `constant`."""

    query: int = 0
    key: int = 0
    constant: int = 0

    def minus(self, other: IndexExpression) -> IndexExpression:
        """The difference of two expressions."""
        return IndexExpression(self.query - other.query, self.key - other.key, self.constant - other.constant)


def index_expression(item: Any) -> IndexExpression | None:
    """`item` as an expression in the indices along its last two dims, or None where it is none."""
    if isinstance(item, int) and not isinstance(item, bool):
        return IndexExpression(constant=item)
    if not isinstance(item, fx.Node) or not has_tensor(item) or value(item).is_floating_point():
        return None
    if (number := _constant(item)) is not None:
        return IndexExpression(constant=number)
    if is_call(item, aten.add.Tensor, aten.sub.Tensor) and argument(item, "alpha") == 1:
        left, right = (index_expression(operand) for operand in operands(item))
        if left is None or right is None:
            return None
        return left.minus(right if is_call(item, aten.sub.Tensor) else IndexExpression().minus(right))
    if is_call(item, aten.index.Tensor):
        table, indices = operands(item)
        if None in indices or len(indices) != value(table).dim() or counted_dim(table) != -1:
            return None
        looked_up = index_expression(indices[-1])
        return looked_up if looked_up in (IndexExpression(query=1), IndexExpression(key=1)) else None
    dim = counted_dim(item)
    if dim == QUERY:
        return IndexExpression(query=1)
    return IndexExpression(key=1) if dim == KEY else None


def counted_dim(node: fx.Node) -> int | None:
    """The dim, counted from the last as -1, along which `node` holds 0, 1, 2, ...; None when it is no such count."""
    rank = value(node).dim()
    if is_call(node, aten.arange.default):
        return -1
    if is_call(node, aten.arange.start, aten.arange.start_step):
        starts = argument(node, "start") == 0 and (is_call(node, aten.arange.start) or argument(node, "step") == 1)
        return -1 if starts else None
    order = permutation(node)
    if order is None and not is_call(node, *REPEATING, aten.unsqueeze.default, aten.reshape.default):
        return None
    source = operands(node)[0]
    if not has_tensor(source) or value(node).is_floating_point() or (inner := counted_dim(source)) is None:
        return None
    if order is not None:
        return order.index(inner % rank) - rank
    if is_call(node, aten.unsqueeze.default):
        added = argument(node, "dim") % rank - rank
        return inner - 1 if inner <= added else inner
    if is_call(node, aten.reshape.default) and not same_shape(node, source):
        long = [dim for dim, size in enumerate(value(node).shape) if size != 1]
        return long[0] - rank if len(long) == 1 else None
    return inner if same_size(value(node).shape[inner], value(source).shape[inner]) else None


def _constant(node: fx.Node) -> int | None:
    """The whole number that every element of `node` is, or None.

    transformers numbers packed sequences by cumsum(diff(positions) != 1), which is 0 where positions are one count.
    """
    filled = constant_fill(node)
    if filled is not None:
        return int(filled)
    if is_call(node, aten.diff.default):
        return 1 if _is_step_of_count(node) else None
    if is_call(node, aten.sub.Tensor) and _is_written_out_step(node):
        return 1
    if not is_call(node, *CASTS, *TESTS, aten.logical_not.default, aten.cumsum.default, aten.index.Tensor):
        return None
    inner = _constant(operands(node)[0])
    if inner is None or is_call(node, aten.index.Tensor, *CASTS):
        return inner
    if is_call(node, aten.logical_not.default):
        return int(not inner)
    if is_call(node, *TESTS):
        return int((inner == operands(node)[1]) == is_call(node, aten.eq.Scalar))
    return inner if inner == 0 else None


TESTS = frozenset({aten.eq.Scalar, aten.ne.Scalar})


def _is_step_of_count(diff: fx.Node) -> bool:
    """Whether `diff` takes the steps of a count along its last dim, the first one from what comes before its start."""
    count, before = operands(diff)[0], argument(diff, "prepend")
    rank = value(count).dim()
    once = argument(diff, "n") == 1 and argument(diff, "dim") % rank == rank - 1 and argument(diff, "append") is None
    return bool(once) and counted_dim(count) == -1 and _precedes(before, count)


def _precedes(before: Any, count: fx.Node) -> bool:
    """Whether `before` is count[..., :1] - 1."""
    if not is_call(before, aten.sub.Tensor) or operands(before)[1] != 1:
        return False
    rank = value(count).dim()
    first = operands(before)[0]
    is_first = is_call(first, aten.slice.Tensor) and argument(first, "end") == 1 and not argument(first, "start")
    return is_first and operands(first)[0] is count and argument(first, "dim") % rank == rank - 1


def _is_written_out_step(node: fx.Node) -> bool:
    """Whether `node` is x[1:] - x[:-1] for a count x with what comes before its start in front: diff, after ONNX."""
    later, earlier = operands(node)
    slices = all(is_call(part, aten.slice.Tensor) for part in (later, earlier)) and argument(node, "alpha") == 1
    if (
        not slices
        or operands(later)[0] is not operands(earlier)[0]
        or not is_call(operands(later)[0], aten.cat.default)
    ):
        return False
    parts, dim = operands(later)[0].args[0], argument(operands(later)[0], "dim")
    rank = value(node).dim()
    along = [argument(part, "dim") % rank for part in (later, earlier)]
    starts = [argument(part, "start") or 0 for part in (later, earlier)]
    if along != [rank - 1, rank - 1] or dim % rank != rank - 1 or starts != [1, 0] or len(parts) != 2:
        return False
    before, count = parts
    return counted_dim(count) == -1 and same_shape(node, count) and _precedes(before, count)
