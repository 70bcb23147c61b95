"""A window with sinks, for which ONNX Runtime has no kernel that gives the sum of its scores: products and a softmax.

One new token is written into its slot, in place where past and present are bound to the same memory, and reads all
slots. Several are read in blocks, each with the window before it. Which of the two is chosen when the graph runs; the
places and masks of both are written once for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import DATA_TYPES, MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.served_types import refuse_double
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.backends.onnx_runtime.translations.window_places import Blocks, OneToken, Places

COMPUTED = torch.float32


@translates("regraft.sliding_window_attention.default")
def sliding_window_attention(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    past_key: fx.Node | None,
    past_value: fx.Node | None,
    past_length: fx.Node | None,
    window: int,
    sinks: int,
    scale: float,
) -> tuple[ir.Value, ...]:
    """query [batch, heads, tokens, head_dim]; key and value [batch, kv_heads, tokens, head_dim]."""
    refuse_double(query, "attention to a window")
    kv_heads, slots, head_dim = int(shape_of(key)[1]), sinks + window, int(shape_of(key)[3])
    batch, tokens = w.dim_of(query, 0), w.dim_of(query, 2)
    if past_key is None or past_value is None or past_length is None:
        length = w.shared(("no length", batch), lambda: _zeros(w, [batch], torch.int64))
        empty = w.shared(
            ("no slots", batch, kv_heads, slots, head_dim),
            lambda: _zeros(w, [batch, *(w.constant([one], np.int64) for one in (kv_heads, slots, head_dim))], COMPUTED),
        )
        held = (empty, empty)
    else:
        length, held = w.value(past_length), (w.tensor(past_key, COMPUTED), w.tensor(past_value, COMPUTED))
    q, k, v = (w.tensor(one, COMPUTED) for one in (query, key, value))
    layer = WindowLayer(w, q, k, v, *held, kv_heads, int(shape_of(query)[1]) // kv_heads, head_dim, float(scale))
    forms = window_forms(layer, length, tokens, window, sinks, from_start=past_length is None)
    made = layer.computed(node.name, forms)
    dtypes = [one.dtype for one in node.meta["val"]]
    return tuple(
        result if dtype == COMPUTED else w.cast(result, dtype) for result, dtype in zip(made, dtypes, strict=True)
    )


@dataclass(frozen=True)
class WindowForms:
    """Where things stand for each form of a call, and which it is; of sequences from their start only `blocks`."""

    blocks: Blocks
    one: OneToken | None = None
    is_one: ir.Value | None = None


@dataclass(frozen=True)
class WindowLayer:
    """One call: what it reads, as ONNX values, and how its heads are grouped. Methods give the operator's results."""

    w: GraphWriter
    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    kv_heads: int
    repeats: int
    head_dim: int
    scale: float

    def computed(self, name: str, forms: WindowForms) -> tuple[ir.Value, ...]:
        """In the form that the count of tokens asks for when the graph runs."""
        one, is_one = forms.one, forms.is_one
        if one is None or is_one is None:
            return self.in_blocks(forms.blocks)
        return self.w.choose(
            is_one,
            4,
            (f"{name}.one_token", lambda: self.of_one_token(one)),
            (f"{name}.blocks", lambda: self.in_blocks(forms.blocks)),
        )

    def of_one_token(self, places: OneToken) -> tuple[ir.Value, ...]:
        """The new key and value go into their slots, then the token reads all slots."""
        w, heads = self.w, self.kv_heads * self.repeats
        keys = w.emit("ScatterND", self.past_key, places.slots, self.key)
        values = w.emit("ScatterND", self.past_value, places.slots, self.value)
        query = self._reshaped(self.query, 0, self.kv_heads, self.repeats, self.head_dim)
        output, sums = self._attended(query, keys, values, places.mask)
        return (
            self._reshaped(output, 0, heads, 1, self.head_dim),
            self._reshaped(sums, 0, heads, 1),
            keys,
            values,
        )

    def in_blocks(self, places: Blocks) -> tuple[ir.Value, ...]:
        """Each block of new tokens against the sinks, the window before it and itself."""
        w, heads = self.w, self.kv_heads * self.repeats
        lines = [
            w.emit("Concat", past, new, axis=2)
            for past, new in ((self.past_key, self.key), (self.past_value, self.value))
        ]
        keys, values = (
            w.emit(
                "Reshape",
                w.emit("GatherND", line, places.read, batch_dims=2),
                w.emit("Concat", self._numbers(0, 0), places.count, self._numbers(-1, self.head_dim), axis=0),
            )
            for line in lines
        )  # [batch, kv_heads, blocks, places, head_dim]
        split = w.emit("Concat", self._numbers(0, self.kv_heads, self.repeats), places.count, self._numbers(-1), axis=0)
        query = w.emit("Reshape", w.emit("Gather", self.query, places.tokens, axis=2), split)
        query = self._reshaped(w.emit("Transpose", query, perm=[0, 1, 3, 2, 4]), 0, 0, 0, -1, self.head_dim)
        output, sums = (
            w.emit("Transpose", self._reshaped(one, 0, 0, 0, self.repeats, -1), perm=[0, 1, 3, 2, 4])
            for one in self._attended(query, keys, values, places.mask)
        )
        output, sums = self._reshaped(output, 0, heads, -1, self.head_dim), self._reshaped(sums, 0, heads, -1)
        output, sums = (
            w.emit("Slice", one, self._numbers(0), places.length, self._numbers(2)) for one in (output, sums)
        )
        return output, sums, *(w.emit("GatherND", line, places.kept, batch_dims=2) for line in lines)

    def _attended(self, query: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        return attended(self.w, query, keys, values, mask, self.scale)

    def _reshaped(self, value: ir.Value, *sizes: int) -> ir.Value:
        return self.w.emit("Reshape", value, self._numbers(*sizes))

    def _numbers(self, *values: int) -> ir.Value:
        return self.w.constant(list(values), np.int64)


def window_forms(
    layer: WindowLayer, length: ir.Value, tokens: ir.Value, window: int, sinks: int, *, from_start: bool
) -> WindowForms:
    """What layers with such heads and such a window share. `length` int64 [batch] counts the tokens before."""
    w, kv_heads, repeats = layer.w, layer.kv_heads, layer.repeats
    places = Places(w, length, tokens, window, sinks)
    shared = ("window", length, tokens, window, sinks, kv_heads, repeats)
    if from_start:
        return WindowForms(w.shared((*shared, "blocks"), lambda: Blocks.of(places, kv_heads, repeats, COMPUTED)))
    one = w.shared((*shared, "one token"), lambda: OneToken.of(places, kv_heads, COMPUTED))
    is_one = w.shared(("is one", tokens), lambda: w.emit("Equal", tokens, w.constant([1], np.int64)))
    blocks = w.shared((*shared, "blocks"), lambda: Blocks.of_several(places, kv_heads, repeats, COMPUTED, is_one))
    return WindowForms(blocks, one, is_one)


def attended(
    w: GraphWriter, query: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value, scale: float
) -> tuple[ir.Value, ir.Value]:
    """query [..., queries, head_dim] over keys and values [..., places, head_dim], and the sums [..., queries].

    With the largest score s of a row and its share p = exp(s - sum), the sum is s - log(p): two maxima, where
    ReduceLogSumExp would take every exponential once more.
    """
    last = w.constant([-1], np.int64)
    scores = w.emit("FusedMatMul", query, keys, domain=MICROSOFT, transB=1, alpha=scale)
    scores = w.emit("Add", scores, mask)
    shares = w.emit("Softmax", scores, axis=-1)
    largest, share = (w.emit("ReduceMax", one, last, keepdims=0) for one in (scores, shares))
    return w.emit("MatMul", shares, values), w.emit("Sub", largest, w.emit("Log", share))


def _zeros(w: GraphWriter, sizes: list[ir.Value], dtype: torch.dtype) -> ir.Value:
    """Zeros of sizes that are each int64 [1]."""
    zero = ir.tensor([0], dtype=DATA_TYPES[dtype])
    return w.emit("ConstantOfShape", w.emit("Concat", *sizes, axis=0), value=zero)
