"""A window on either side, by products and a softmax: all scores of short sequences at once, long ones in blocks.

Which of the two is chosen when the graph runs, where the number of tokens is not fixed. Places, and what a window
sees of them, are written once for all layers; masks once for all layers that share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.served_types import refuse_double
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.backends.onnx_runtime.translations.sliding_window import COMPUTED, attended
from compiler.ops.bidirectional_window_attention import blocks_from


@translates("regraft.bidirectional_window_attention.default")
def bidirectional_window_attention(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    mask: fx.Node | None,
    window: int,
    sinks: int,
    scale: float,
) -> tuple[ir.Value, ...]:
    """query [batch, heads, tokens, head_dim]; key and value [batch, kv_heads, tokens, head_dim]."""
    refuse_double(query, "attention to a window")
    heads, head_dim = int(shape_of(query)[1]), int(shape_of(query)[3])
    tokens = w.dim_of(query, 2)
    q, k, v = (w.tensor(one, COMPUTED) for one in (query, key, value))
    repeats = heads // int(shape_of(key)[1])
    if repeats > 1:
        k, v = (_repeated(w, one, heads, repeats, head_dim) for one in (k, v))
    held = None if mask is None else w.value(mask)
    by_key = mask is not None and shape_of(mask)[2] == 1
    layer = _Layer(w, q, k, v, held, by_key, tokens, head_dim, window, sinks, float(scale))
    most, known = blocks_from(window, sinks), shape_of(query)[2]
    if isinstance(known, int):
        made = layer.in_blocks() if known > most else layer.at_once()
    else:
        is_long = w.shared(("is long", tokens, most), lambda: w.emit("Greater", tokens, w.constant([most], np.int64)))
        blocks, at_once = (f"{node.name}.blocks", layer.in_blocks), (f"{node.name}.at_once", layer.at_once)
        made = w.choose(is_long, 2, blocks, at_once)
    dtypes = [one.dtype for one in node.meta["val"]]
    return tuple(
        result if dtype == COMPUTED else w.cast(result, dtype) for result, dtype in zip(made, dtypes, strict=True)
    )


@dataclass(frozen=True)
class _Layer:
    """One call, as ONNX values, with as many heads of keys as of queries; `tokens` int64 [1].

    `by_key` says that the mask is [batch, heads, 1, tokens].
    """

    w: GraphWriter
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    by_key: bool
    tokens: ir.Value
    head_dim: int
    window: int
    sinks: int
    scale: float

    def at_once(self) -> tuple[ir.Value, ...]:
        """All scores, and those outside the window masked."""
        w = self.w
        own = self._count(self.tokens)
        rows, columns = (w.emit("Unsqueeze", own, self._numbers(axis)) for axis in (1, 0))
        seen = self._near(rows, columns)
        if self.sinks:
            seen = w.emit("Or", seen, w.emit("Less", columns, self._numbers(self.sinks)))
        if self.mask is not None:
            seen = w.emit("And", seen, self.mask)
        seen = w.emit("Or", seen, w.emit("Equal", rows, columns))
        return attended(w, self.query, self.key, self.value, self._additive(seen), self.scale)

    def in_blocks(self) -> tuple[ir.Value, ...]:
        """Each block of `window` tokens against the sinks, itself and a block on either side."""
        w, window, seen_places = self.w, self.window, self.sinks + 3 * self.window
        last = w.emit("Sub", self.tokens, self._numbers(1))
        count = w.emit("Div", w.emit("Add", self.tokens, self._numbers(window - 1)), self._numbers(window))
        starts = w.emit("Unsqueeze", w.emit("Mul", self._count(count), self._numbers(window)), self._numbers(1))
        own = w.emit("Min", w.emit("Add", starts, self._numbers(*range(window))), last)  # [blocks, window]
        moving = w.emit("Add", starts, self._numbers(*range(-window, 2 * window)))
        inside = w.emit("And", self._at_least(moving, self.sinks), w.emit("LessOrEqual", moving, last))
        places = moving  # [blocks, sinks + 3 window]
        if self.sinks:
            shape = w.emit("Concat", count, self._numbers(self.sinks), axis=0)
            first = w.emit("Expand", w.constant(np.arange(self.sinks).reshape(1, -1), np.int64), shape)
            inside = w.emit("Concat", w.emit("LessOrEqual", first, last), inside, axis=1)
            places = w.emit("Concat", first, moving, axis=1)
        held = w.emit("Max", w.emit("Min", places, last), self._numbers(0))
        rows, columns = w.emit("Unsqueeze", own, self._numbers(2)), w.emit("Unsqueeze", places, self._numbers(1))
        seen = self._near(rows, columns)
        if self.sinks:
            seen = w.emit("Or", seen, w.constant(np.arange(seen_places) < self.sinks))
        if self.mask is not None:
            seen = w.emit("And", seen, self._masked(self.mask, own, held, seen_places))
        seen = w.emit("Or", seen, w.emit("Equal", rows, columns))
        seen = w.emit("And", seen, w.emit("Unsqueeze", inside, self._numbers(1)))
        query = self._gathered(self.query, own, window, self.head_dim)
        keys, values = (self._gathered(one, held, seen_places, self.head_dim) for one in (self.key, self.value))
        output, sums = attended(w, query, keys, values, self._additive(seen), self.scale)
        output, sums = self._reshaped(output, 0, 0, -1, self.head_dim), self._reshaped(sums, 0, 0, -1)
        return tuple(w.emit("Slice", one, self._numbers(0), self.tokens, self._numbers(2)) for one in (output, sums))

    def _gathered(self, value: ir.Value, places: ir.Value, count: int, width: int) -> ir.Value:
        """[batch, heads, tokens, width] at places [blocks, count]: [batch, heads, blocks, count, width]."""
        found = self.w.emit("Gather", value, self._reshaped(places, -1), axis=2)
        return self._reshaped(found, 0, 0, -1, count, width)

    def _masked(self, mask: ir.Value, own: ir.Value, held: ir.Value, count: int) -> ir.Value:
        """The mask of each block, [batch, heads, blocks, window or 1, count]."""
        if self.by_key:
            found = self.w.emit("Gather", mask, self._reshaped(held, -1), axis=3)
            return self._reshaped(found, 0, 0, -1, 1, count)
        rows = self.w.emit("Mul", self.w.emit("Unsqueeze", own, self._numbers(2)), self.tokens)
        pairs = self.w.emit("Add", rows, self.w.emit("Unsqueeze", held, self._numbers(1)))
        found = self.w.emit("Gather", self._reshaped(mask, 0, 0, -1), self._reshaped(pairs, -1), axis=2)
        return self._reshaped(found, 0, 0, -1, self.window, count)

    def _near(self, rows: ir.Value, columns: ir.Value) -> ir.Value:
        distance = self.w.emit("Abs", self.w.emit("Sub", rows, columns))
        return self.w.emit("Less", distance, self._numbers(self.window))

    def _at_least(self, left: ir.Value, right: int) -> ir.Value:
        return self.w.emit("GreaterOrEqual", left, self._numbers(right))

    def _additive(self, seen: ir.Value) -> ir.Value:
        lowest = self.w.tensor(torch.finfo(COMPUTED).min, COMPUTED)
        return self.w.emit("Where", seen, self.w.tensor(0.0, COMPUTED), lowest)

    def _count(self, stop: ir.Value) -> ir.Value:
        """int64 [n]: 0 to n - 1, of n int64 [1]."""
        zero, one = (self.w.constant(number, np.int64) for number in (0, 1))
        return self.w.emit("Range", zero, self.w.emit("Squeeze", stop, self._numbers(0)), one)

    def _reshaped(self, value: ir.Value, *sizes: int) -> ir.Value:
        return self.w.emit("Reshape", value, self._numbers(*sizes))

    def _numbers(self, *values: int) -> ir.Value:
        return self.w.constant(list(values), np.int64)


def _repeated(w: GraphWriter, value: ir.Value, heads: int, repeats: int, head_dim: int) -> ir.Value:
    """[batch, heads / repeats, tokens, head_dim] with each head as often as queries read it."""
    apart = w.emit("Unsqueeze", value, w.constant([2], np.int64))
    wide = w.emit("Expand", apart, w.constant([1, 1, repeats, 1, 1], np.int64))
    return w.emit("Reshape", wide, w.constant([0, heads, -1, head_dim], np.int64))
