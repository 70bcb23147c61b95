"""Spans: which part of the last dim of another value a value is, through slices, chunks and splits."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from compiler.patterns import argument, aten, is_call, operands, static_size, unpacked_item, value

SPLITS = (aten.chunk.default, aten.split_with_sizes.default, aten.split.Tensor)


class Span(NamedTuple):
    """`source[..., start:stop:step]`"""

    source: fx.Node
    start: int
    stop: int
    step: int


def span_of(node: fx.Node) -> Span:
    """Which part of which value `node` is, through slices and splits of the last dim; in the least, all of itself."""
    width = static_size(node, -1)
    if width is None:
        return Span(node, 0, -1, 1)
    rank = value(node).dim()
    if is_call(node, aten.slice.Tensor) and argument(node, "dim") % rank == rank - 1:
        start, step = argument(node, "start") or 0, argument(node, "step")
        source = operands(node)[0]
        given = static_size(source, -1)
        if isinstance(start, int) and isinstance(step, int) and given is not None:
            start = max(start + given, 0) if start < 0 else start
            return _inside(source, start, width, step, node)
    item = unpacked_item(node)
    if item is not None and is_call(item[0], *SPLITS):
        split, index = item
        source = operands(split)[0]
        if argument(split, "dim") % rank == rank - 1 and static_size(source, -1) is not None:
            before = sum(int(part.shape[-1]) for part in split.meta["val"][:index])
            return _inside(source, before, width, 1, node)
    return Span(node, 0, width, 1)


def _inside(source: fx.Node, start: int, width: int, step: int, node: fx.Node) -> Span:
    """The span of `width` numbers from `start` on of `source`, which may be part of another value itself."""
    outer = span_of(source)
    if outer.step != 1:
        return Span(node, 0, width, 1)
    first = outer.start + start
    stop = first + width * step
    # An odd start in steps of two ends one early: the last number of a pair has none behind it.
    return Span(outer.source, first, stop - (start % step), step)
