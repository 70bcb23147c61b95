"""Routed attention as If: a call runs attention to all tokens, or windows, or both where its tokens differ.

Both write the same buffers, in place where past and present are bound to the same memory: what a window reads of the
past lies before the places that either writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.cached_attention import refuse_head_dim
from compiler.backends.onnx_runtime.translations.served_types import refuse_double
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.backends.onnx_runtime.translations.sliding_window import COMPUTED, WindowForms, WindowLayer, window_forms
from compiler.backends.onnx_runtime.translations.window_places import Places


@translates("regraft.routed_attention.default")
def routed_attention(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    score: fx.Node,
    past_key: fx.Node | None,
    past_value: fx.Node | None,
    past_length: fx.Node | None,
    total_sequence_length: fx.Node | int,
    window: int,
    sinks: int,
    first: int,
    scale: float,
) -> tuple[ir.Value, ...]:
    """query [batch, heads, tokens, head_dim]; buffers [batch, kv_heads, capacity, head_dim]."""
    refuse_double(query, "routed attention")
    kv_heads, head_dim = int(shape_of(key)[1]), int(shape_of(key)[3])
    repeats = int(shape_of(query)[1]) // kv_heads
    tokens, slots = w.dim_of(query, 2), w.constant([sinks + window], np.int64)
    q, k, v = (w.tensor(one, COMPUTED) for one in (query, key, value))
    if past_key is None or past_value is None or past_length is None:
        sizes = [w.dim_of(query, 0), w.constant([kv_heads], np.int64), slots, w.constant([head_dim], np.int64)]
        zero = ir.tensor([0.0], dtype=ir.DataType.FLOAT)
        empty = w.shared(
            ("no slots", *sizes), lambda: w.emit("ConstantOfShape", w.emit("Concat", *sizes, axis=0), value=zero)
        )
        length = w.shared(("no length", sizes[0]), lambda: _no_length(w, sizes[0]))
        near = WindowLayer(w, q, k, v, empty, empty, kv_heads, repeats, head_dim, float(scale))
        forms = window_forms(near, length, tokens, window, sinks, from_start=True)
        return _as_declared(w, node, (_whole(w, node, near, forms, w.value(score), length, tokens, first), k, v))
    refuse_head_dim(head_dim, node)
    length, held = w.value(past_length), (w.tensor(past_key, COMPUTED), w.tensor(past_value, COMPUTED))
    near = WindowLayer(w, q, k, v, *held, kv_heads, repeats, head_dim, float(scale))
    forms = window_forms(near, length, tokens, window, sinks, from_start=False)
    total = w.size(total_sequence_length)
    places = w.shared(
        ("cache places", length, tokens, window, sinks, kv_heads),
        lambda: _CachePlaces.of(Places(w, length, tokens, window, sinks), kv_heads, w.dim_of(past_key, 2), total),
    )
    made = _Cached(w, near, forms, places).routed(node.name, _choice(w, w.value(score), length, tokens, first))
    return _as_declared(w, node, made)


def _as_declared(w: GraphWriter, node: fx.Node, made: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
    dtypes = [one.dtype for one in node.meta["val"]]
    return tuple(one if dtype == COMPUTED else w.cast(one, dtype) for one, dtype in zip(made, dtypes, strict=True))


@dataclass(frozen=True)
class _Choice:
    """bool [] `some_all`: a token attends to all before it; `some_near`, made on demand: one to a window.

    `attends_to_all`, made on demand, bool [batch, 1, tokens, 1].
    """

    some_all: ir.Value
    some_near: Callable[[], ir.Value]
    attends_to_all: Callable[[], ir.Value]


def _choice(w: GraphWriter, score: ir.Value, length: ir.Value, tokens: ir.Value, first: int) -> _Choice:
    zero, limit, one = w.constant(0, np.float32), w.constant(first, np.int64), w.constant(1, np.float32)
    early, late, leading = w.shared(
        ("early", length, tokens, first),
        lambda: (
            w.emit("Less", length, limit),
            w.emit("Greater", w.emit("Add", length, tokens), limit),
            _leading(w, length, tokens, limit),
        ),
    )
    some_all = w.emit("Greater", w.emit("ReduceMax", w.emit("Where", early, one, score), keepdims=0), zero)

    def some_near() -> ir.Value:
        return w.emit("LessOrEqual", w.emit("ReduceMin", w.emit("Where", late, score, one), keepdims=0), zero)

    def attends_to_all() -> ir.Value:
        needed = w.emit("Reshape", w.emit("Greater", score, zero), w.constant([-1, 1, 1, 1], np.int64))
        return w.emit("Or", needed, leading)

    return _Choice(some_all, some_near, attends_to_all)


def _leading(w: GraphWriter, length: ir.Value, tokens: ir.Value, limit: ir.Value) -> ir.Value:
    """bool [batch, 1, tokens, 1]: which new tokens stand before `limit`."""
    steps = w.emit("Range", w.constant(0, np.int64), w.emit("Squeeze", tokens), w.constant(1, np.int64))
    starts = w.emit("Reshape", length, w.constant([-1, 1, 1, 1], np.int64))
    return w.emit("Less", w.emit("Add", starts, w.emit("Unsqueeze", steps, w.constant([1], np.int64))), limit)


def _whole(
    w: GraphWriter, node: fx.Node, near: WindowLayer, forms: WindowForms, score: ir.Value, length: ir.Value,
    tokens: ir.Value, first: int,
) -> ir.Value:  # fmt: skip
    """Sequences from their start: the first tokens alone attend to all where no score asks for more."""
    zero = w.constant(0, np.float32)
    begin, end, axis = w.constant([0], np.int64), w.constant([first], np.int64), w.constant([2], np.int64)
    beyond = w.constant([np.iinfo(np.int64).max], np.int64)

    def all_tokens(*given: ir.Value) -> ir.Value:
        return w.emit("Attention", *given, is_causal=1, scale=near.scale)

    def windows() -> ir.Value:
        lead = all_tokens(*(w.emit("Slice", one, begin, end, axis) for one in (near.query, near.key, near.value)))
        rest = w.emit("Slice", near.computed(node.name, forms)[0], end, beyond, axis)
        return w.emit("Concat", lead, rest, axis=2)

    def both() -> ir.Value:
        needed = w.emit("Reshape", w.emit("Greater", score, zero), w.constant([-1, 1, 1, 1], np.int64))
        return w.emit("Where", needed, all_tokens(near.query, near.key, near.value), windows())

    def some() -> ir.Value:
        every = w.emit("Greater", w.emit("ReduceMin", score, keepdims=0), zero)
        alone = w.emit("Or", every, is_short)
        everywhere = f"{node.name}.all", lambda: (all_tokens(near.query, near.key, near.value),)
        return w.choose(alone, 1, everywhere, (f"{node.name}.both", lambda: (both(),)))[0]

    is_short = w.shared(
        ("is short", tokens, first),
        lambda: w.emit("LessOrEqual", w.emit("Squeeze", tokens), w.constant(first, np.int64)),
    )
    asked = w.emit("Greater", w.emit("ReduceMax", score, keepdims=0), zero)
    branches = (f"{node.name}.some", lambda: (some(),)), (f"{node.name}.windows", lambda: (windows(),))
    return w.choose(w.emit("Or", asked, is_short), 1, *branches)[0]


@dataclass(frozen=True)
class _CachePlaces:
    """What layers with the same buffers share.

    `written` int64 [batch, kv_heads, tokens, 3]: where new keys go; `slots` [batch, kv_heads, slots, 1]: the position
    that each slot of a window holds; `last` int32 [batch] and `total` int32 []: as GroupQueryAttention reads them.
    """

    written: ir.Value
    slots: ir.Value
    last: ir.Value
    total: ir.Value

    @classmethod
    def of(cls, places: Places, heads: int, capacity: ir.Value, total: ir.Value) -> _CachePlaces:
        w, number = places.w, places.number
        last = w.emit("Sub", w.emit("Add", places.length, places.tokens), number(1))
        return cls(
            _written(places, heads),
            _held(places, heads, capacity),
            w.cast(last, torch.int32),
            w.cast(w.emit("Squeeze", total), torch.int32),
        )


def _written(places: Places, heads: int) -> ir.Value:
    w, number = places.w, places.number
    batch = w.emit("Shape", places.length)
    zero, one = w.constant(0, np.int64), w.constant(1, np.int64)
    rows = w.emit("Range", zero, w.emit("Squeeze", batch), one)
    steps = w.emit("Range", zero, w.emit("Squeeze", places.tokens), one)
    starts = w.emit("Reshape", places.length, number(-1, 1, 1, 1))
    shape = w.emit("Concat", batch, number(heads), places.tokens, number(1), axis=0)
    columns = (
        w.emit("Reshape", rows, number(-1, 1, 1, 1)),
        w.constant(np.arange(heads).reshape(1, heads, 1, 1), np.int64),
        w.emit("Add", starts, w.emit("Reshape", steps, number(1, 1, -1, 1))),
    )
    return w.emit("Concat", *(w.emit("Expand", column, shape) for column in columns), axis=3)


def _held(places: Places, heads: int, capacity: ir.Value) -> ir.Value:
    """Slot s < sinks holds position s, another the last one before `length` that is s modulo the window.

    Where there is no such position it is any in the buffer: what no position has reached is masked.
    """
    w, number = places.w, places.number
    slots = np.arange(places.slots).reshape(1, -1)
    is_sink, slot = w.constant(slots < places.sinks), w.constant(slots, np.int64)
    last = w.emit("Sub", w.emit("Unsqueeze", places.length, number(1)), number(1))
    back = w.emit("Mod", w.emit("Sub", last, slot), number(places.window))
    latest = w.emit("Max", w.emit("Where", is_sink, slot, w.emit("Sub", last, back)), number(0))
    latest = w.emit("Min", latest, w.emit("Sub", capacity, number(1)))
    return w.emit("Expand", w.emit("Reshape", latest, number(0, 1, -1, 1)), number(1, heads, 1, 1))


@dataclass(frozen=True)
class _Cached:
    """One call over buffers. Methods give the output and the buffers with the new tokens written.

    `near` reads the buffers where it will read a window's slots.
    """

    w: GraphWriter
    near: WindowLayer
    forms: WindowForms
    places: _CachePlaces

    def routed(self, name: str, choice: _Choice) -> tuple[ir.Value, ...]:
        """Whichever is asked for when the graph runs."""
        w = self.w

        def some() -> tuple[ir.Value, ...]:
            both = f"{name}.both", lambda: self.both(name, choice)
            return w.choose(choice.some_near(), 3, both, (f"{name}.all", self.all_tokens))

        return w.choose(choice.some_all, 3, (f"{name}.some", some), (f"{name}.windows", lambda: self.windows(name)))

    def all_tokens(self) -> tuple[ir.Value, ...]:
        """Attention to all tokens."""
        w, near = self.w, self.near
        heads = near.kv_heads * near.repeats
        packed = w.constant([0, 0, -1], np.int64)
        given = (
            w.emit("Reshape", w.emit("Transpose", one, perm=[0, 2, 1, 3]), packed)
            for one in (near.query, near.key, near.value)
        )
        output, *presents = w.emit_several(
            "GroupQueryAttention",
            *given,
            near.past_key,
            near.past_value,
            self.places.last,
            self.places.total,
            outputs=3,
            domain=MICROSOFT,
            num_heads=heads,
            kv_num_heads=near.kv_heads,
            scale=near.scale,
        )
        split = w.emit("Reshape", output, w.constant([0, 0, heads, near.head_dim], np.int64))
        return w.emit("Transpose", split, perm=[0, 2, 1, 3]), *presents

    def windows(self, name: str) -> tuple[ir.Value, ...]:
        """Windows alone, and the new tokens written behind the others."""
        pairs = ((self.near.past_key, self.near.key), (self.near.past_value, self.near.value))
        presents = [self.w.emit("ScatterND", past, self.places.written, new) for past, new in pairs]
        return self._near(name), *presents

    def both(self, name: str, choice: _Choice) -> tuple[ir.Value, ...]:
        """Each token's own."""
        output, *presents = self.all_tokens()
        return self.w.emit("Where", choice.attends_to_all(), output, self._near(name)), *presents

    def _near(self, name: str) -> ir.Value:
        held = (
            self.w.emit("GatherND", one, self.places.slots, batch_dims=2)
            for one in (self.near.past_key, self.near.past_value)
        )
        past_key, past_value = held
        return replace(self.near, past_key=past_key, past_value=past_value).computed(name, self.forms)[0]


def _no_length(w: GraphWriter, batch: ir.Value) -> ir.Value:
    return w.emit("ConstantOfShape", batch, value=ir.tensor([0], dtype=ir.DataType.INT64))
