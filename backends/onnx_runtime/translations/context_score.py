"""A router's score. Its arithmetic stands behind an If: a call behind the tokens that it reads hands its state on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.served_types import refuse_double
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.backends.onnx_runtime.translations.sliding_window import COMPUTED


@translates("regraft.context_score.default")
def context_score(
    w: GraphWriter,
    node: fx.Node,
    hidden: fx.Node,
    weight: fx.Node,
    bias: fx.Node,
    past_state: fx.Node | None,
    past_length: fx.Node | None,
    first: int,
) -> tuple[ir.Value, ...]:
    """hidden [batch, tokens, width]."""
    refuse_double(hidden, "scores of contexts")
    x, factors, offset = (w.tensor(one, COMPUTED) for one in (hidden, weight, bias))
    width, tokens = int(shape_of(hidden)[2]), w.dim_of(hidden, 1)
    score = _Score(w, x, factors, offset, width, tokens, first)
    if past_state is None or past_length is None:
        return score.of_start()
    state, length = w.tensor(past_state, COMPUTED), w.value(past_length)
    settled = w.shared(
        ("settled", length, first),
        lambda: w.emit("GreaterOrEqual", w.emit("ReduceMin", length, keepdims=0), w.constant(first, np.int64)),
    )
    is_read, count = w.shared(("read first", length, tokens, first), lambda: _read(w, length, tokens, first))
    return w.choose(
        settled,
        2,
        (f"{node.name}.settled", lambda: (score.held(state), state)),
        (f"{node.name}.read", lambda: score.after(state, length, is_read, count)),
    )


def _read(w: GraphWriter, length: ir.Value, tokens: ir.Value, first: int) -> tuple[ir.Value, ir.Value]:
    """bool [batch, tokens, 1]: which new tokens are among the first; float [batch, 1]: how many of those there are."""
    starts = w.emit("Unsqueeze", length, w.constant([1, 2], np.int64))
    steps = w.emit("Range", w.constant(0, np.int64), w.emit("Squeeze", tokens), w.constant(1, np.int64))
    positions = w.emit("Add", starts, w.emit("Unsqueeze", steps, w.constant([1], np.int64)))
    is_read = w.emit("Less", positions, w.constant(first, np.int64))
    count = w.emit("Min", w.emit("Add", length, tokens), w.constant([first], np.int64))
    return is_read, w.cast(w.emit("Unsqueeze", count, w.constant([1], np.int64)), COMPUTED)


@dataclass(frozen=True)
class _Score:
    """One router's call, as ONNX values. Methods give the score [batch] and the next state."""

    w: GraphWriter
    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    width: int
    tokens: ir.Value
    first: int

    def of_start(self) -> tuple[ir.Value, ...]:
        """Of sequences from their start."""
        w, axis = self.w, self.w.constant([1], np.int64)
        x = w.emit("Slice", self.x, w.constant([0], np.int64), w.constant([self.first], np.int64), axis)
        count = w.cast(w.emit("Min", self.tokens, w.constant([self.first], np.int64)), COMPUTED)
        total, highest = (w.emit(op, x, axis, keepdims=0) for op in ("ReduceSum", "ReduceMax"))
        return self._joined(total, highest, count)

    def after(self, state: ir.Value, length: ir.Value, is_read: ir.Value, count: ir.Value) -> tuple[ir.Value, ...]:
        """Behind what a state holds."""
        w, axis = self.w, self.w.constant([1], np.int64)
        lowest = w.constant(np.finfo(np.float32).min, np.float32)
        total, highest, score = w.emit_several(
            "Split", state, w.constant([self.width, self.width, 1], np.int64), outputs=3, axis=1
        )
        added = w.emit("ReduceSum", w.emit("Where", is_read, self.x, w.constant(0, np.float32)), axis, keepdims=0)
        fresh = w.emit("Unsqueeze", w.emit("Equal", length, w.constant(0, np.int64)), axis)
        before = w.emit("Where", fresh, lowest, highest)
        seen = w.emit("ReduceMax", w.emit("Where", is_read, self.x, lowest), axis, keepdims=0)
        found, present = self._joined(w.emit("Add", total, added), w.emit("Max", before, seen), count)
        settled = w.emit("GreaterOrEqual", length, w.constant(self.first, np.int64))
        score = w.emit("Where", settled, w.emit("Squeeze", score, axis), found)
        parts = w.emit("Slice", present, w.constant([0], np.int64), w.constant([2 * self.width], np.int64), axis)
        return score, w.emit("Concat", parts, w.emit("Unsqueeze", score, axis), axis=1)

    def held(self, state: ir.Value) -> ir.Value:
        """The score in a state."""
        return self.w.emit("Gather", state, self.w.constant(2 * self.width, np.int64), axis=1)

    def _joined(self, total: ir.Value, highest: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value]:
        w = self.w
        pooled = w.emit("Concat", w.emit("Div", total, count), highest, axis=1)
        score = w.emit("Add", w.emit("MatMul", pooled, self.weight), self.bias)
        column = w.emit("Unsqueeze", score, w.constant([1], np.int64))
        return score, w.emit("Concat", total, highest, column, axis=1)
