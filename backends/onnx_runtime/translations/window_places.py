"""Where a window's slots and blocks are, as ONNX arithmetic: the same for all layers, written once for all of them.

A window's are those of regraft::sliding_window_attention: position j in slot j where j < sinks, otherwise in slot
sinks + (j - sinks) mod window. A `line` is what a layer held and then its new tokens: slots, then tokens. A delay's are
those of regraft::token_delay: position j in slot j mod delay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir
import torch

from compiler.backends.onnx_runtime.graph_writer import GraphWriter


@dataclass(frozen=True)
class Places:
    """The arithmetic for one count of tokens, window and sinks. `length` int64 [batch] and `tokens` int64 [1]."""

    w: GraphWriter
    length: ir.Value
    tokens: ir.Value
    window: int
    sinks: int

    @property
    def slots(self) -> int:
        """How many there are."""
        return self.sinks + self.window

    def number(self, *values: int) -> ir.Value:
        """int64 [n]."""
        return self.w.constant(list(values), np.int64)

    def decoded_slots(self, heads: int) -> ir.Value:
        """int64 [batch, heads, 1, 3]: batch, head and slot of one new token."""
        turned = self.w.emit("Mod", self.w.emit("Sub", self.length, self.number(self.sinks)), self.number(self.window))
        slot = self.w.emit("Add", turned, self.number(self.sinks))
        if self.sinks:
            is_sink = self.w.emit("Less", self.length, self.number(self.sinks))
            slot = self.w.emit("Where", is_sink, self.length, slot)
        batch = self.w.emit("Shape", self.length)
        shape = self.w.emit("Concat", batch, self.number(heads, 1, 1), axis=0)
        rows = self._count(self.number(0), batch, self.number(1))
        columns = [
            self.w.emit("Reshape", rows, self.number(-1, 1, 1, 1)),
            self.w.constant(np.arange(heads).reshape(1, heads, 1, 1), np.int64),
            self.w.emit("Reshape", slot, self.number(-1, 1, 1, 1)),
        ]
        return self.w.emit("Concat", *(self.w.emit("Expand", one, shape) for one in columns), axis=3)

    def decoded_mask(self, dtype: torch.dtype) -> ir.Value:
        """[batch, 1, 1, slots]: 0 where a slot has been reached once one new token is written, else the lowest."""
        slots = self.w.constant(np.arange(self.slots).reshape(1, 1, 1, -1), np.int64)
        last = self.w.emit("Reshape", self.length, self.number(-1, 1, 1, 1))
        return self._additive(self.w.emit("LessOrEqual", slots, last), dtype)

    def kept(self) -> ir.Value:
        """int64 [batch, slots]: where in the line the next content of each slot stands."""
        w = self.w
        slots = np.arange(self.slots).reshape(1, -1)
        is_sink, slot = w.constant(slots < self.sinks), w.constant(slots, np.int64)
        start = w.emit("Unsqueeze", self.length, self.number(1))
        last = w.emit("Sub", w.emit("Add", start, self.tokens), self.number(1))
        back = w.emit("Mod", w.emit("Sub", last, slot), self.number(self.window))
        latest = w.emit("Where", is_sink, slot, w.emit("Sub", last, back))
        reached = w.emit("And", w.emit("GreaterOrEqual", latest, start), w.emit("LessOrEqual", latest, last))
        in_place = w.emit("Or", w.emit("GreaterOrEqual", latest, self.number(self.sinks)), is_sink)
        place = w.emit("Add", w.emit("Sub", latest, start), self.number(self.slots))
        return w.emit("Where", w.emit("And", reached, in_place), place, slot)

    def block(self) -> ir.Value:
        """int64 [1]: tokens a block, at most a window."""
        return self.w.emit("Max", self.w.emit("Min", self.tokens, self.number(self.window)), self.number(1))

    def blocks(self, block: ir.Value) -> ir.Value:
        """int64 [1]: how many."""
        return self.w.emit("Div", self.w.emit("Sub", self.w.emit("Add", self.tokens, block), self.number(1)), block)

    def block_tokens(self, block: ir.Value, blocks: ir.Value) -> ir.Value:
        """int64 [blocks * block]: the new tokens, the last again where the last block is not full."""
        count = self._count(self.number(0), self.w.emit("Mul", block, blocks), self.number(1))
        return self.w.emit("Min", count, self.w.emit("Sub", self.tokens, self.number(1)))

    def block_places(self, block: ir.Value, blocks: ir.Value, kept: ir.Value) -> ir.Value:
        """int64 [batch, blocks, sinks + window + block]: where in the line stands what each block may see."""
        w = self.w
        relative = self._relative(block, blocks)  # [1, blocks, window + block]
        others = w.emit("Add", w.emit("Reshape", self.length, self.number(-1, 1, 1)), relative)
        turned = w.emit("Mod", w.emit("Sub", others, self.number(self.sinks)), self.number(self.window))
        held = w.emit("Add", turned, self.number(self.sinks))
        new = w.emit("Min", relative, w.emit("Sub", self.tokens, self.number(1)))
        new = w.emit("Add", new, self.number(self.slots))
        moving = w.emit("Where", w.emit("GreaterOrEqual", relative, self.number(0)), new, held)
        if not self.sinks:
            return moving
        first = w.emit("Slice", kept, self.number(0), self.number(self.sinks), self.number(1))
        shape = w.emit("Concat", w.emit("Shape", self.length), blocks, self.number(self.sinks), axis=0)
        first = w.emit("Expand", w.emit("Unsqueeze", first, self.number(1)), shape)
        return w.emit("Concat", first, moving, axis=2)

    def block_mask(self, block: ir.Value, blocks: ir.Value, dtype: torch.dtype) -> ir.Value:
        """[batch, blocks, block, sinks + window + block]: 0 where a token sees a place, else the lowest number."""
        w = self.w
        relative = w.emit("Unsqueeze", self._relative(block, blocks), self.number(2))  # [1, blocks, 1, window + block]
        starts = w.emit("Reshape", self._starts(block, blocks), self.number(1, -1, 1, 1))
        inner = self._count(self.number(0), block, self.number(1))
        own = w.emit("Add", starts, w.emit("Unsqueeze", inner, self.number(1)))  # [1, blocks, block, 1]
        back = w.emit("Sub", own, relative)
        seen = w.emit("And", self._at_least(back, 0), w.emit("Less", back, self.number(self.window)))
        length = w.emit("Reshape", self.length, self.number(-1, 1, 1, 1))
        seen = w.emit("And", seen, self._at_least(w.emit("Add", length, relative), self.sinks))
        if self.sinks:
            sinks = w.constant(np.arange(self.sinks).reshape(1, 1, 1, -1), np.int64)
            first = w.emit("LessOrEqual", sinks, w.emit("Add", length, own))
            seen = w.emit("Concat", first, seen, axis=3)
        return self._additive(seen, dtype)

    def _relative(self, block: ir.Value, blocks: ir.Value) -> ir.Value:
        """int64 [1, blocks, window + block]: the moving places of each block, counted from the first new token."""
        starts = self.w.emit("Reshape", self._starts(block, blocks), self.number(1, -1, 1))
        return self.w.emit("Add", starts, self._count(self.number(-self.window), block, self.number(1)))

    def _starts(self, block: ir.Value, blocks: ir.Value) -> ir.Value:
        return self._count(self.number(0), self.w.emit("Mul", block, blocks), block)

    def _count(self, start: ir.Value, stop: ir.Value, step: ir.Value) -> ir.Value:
        return counted(self.w, start, stop, step)

    def _at_least(self, left: ir.Value, right: int) -> ir.Value:
        return self.w.emit("GreaterOrEqual", left, self.number(right))

    def _additive(self, seen: ir.Value, dtype: torch.dtype) -> ir.Value:
        return self.w.emit("Where", seen, self.w.tensor(0.0, dtype), self.w.tensor(torch.finfo(dtype).min, dtype))


def counted(w: GraphWriter, start: ir.Value, stop: ir.Value, step: ir.Value) -> ir.Value:
    """int64 [n] from sizes, each int64 [1]."""
    return w.emit("Range", *(w.emit("Squeeze", one, w.constant([0], np.int64)) for one in (start, stop, step)))


@dataclass(frozen=True)
class TurnedSlots:
    """What layers need to delay tokens, of which m take and give a slot, all new ones or as many as there are slots.

    `read` int64 [batch, m, 1] are the slots of tokens that come out, `written` [batch, m, 2] rows and slots of tokens
    that go in, `lengths` [2] how many results there are and how many tokens go in.
    """

    read: ir.Value
    written: ir.Value
    lengths: ir.Value

    @classmethod
    def of(cls, w: GraphWriter, length: ir.Value, tokens: ir.Value, delay: int) -> Self:
        """length int64 [batch], tokens int64 [1]."""
        zero, one, slots = (w.constant([number], np.int64) for number in (0, 1, delay))
        turning = w.emit("Min", tokens, slots)
        steps = w.emit("Add", w.emit("Unsqueeze", length, one), counted(w, zero, turning, one))  # [batch, m]
        behind = w.emit("Add", steps, w.emit("Sub", tokens, turning))
        read, written = (
            w.emit("Unsqueeze", w.emit("Mod", at, slots), w.constant([2], np.int64)) for at in (steps, behind)
        )
        row = w.emit("Reshape", counted(w, zero, w.emit("Shape", length), one), w.constant([-1, 1, 1], np.int64))
        rows = w.emit("Expand", row, w.emit("Shape", read))
        return cls(read, w.emit("Concat", rows, written, axis=2), w.emit("Concat", tokens, turning, axis=0))


@dataclass(frozen=True)
class OneToken:
    """What layers need to read one new token. `slots` int64 [batch, heads, 1, 3], `mask` [batch, 1, 1, slots]."""

    slots: ir.Value
    mask: ir.Value

    @classmethod
    def of(cls, places: Places, heads: int, dtype: torch.dtype) -> Self:
        return cls(places.decoded_slots(heads), places.decoded_mask(dtype))


@dataclass(frozen=True)
class Blocks:
    """What layers need to read several new tokens in blocks; `heads` are those of keys, each read by `repeats` queries.

    `length` and `count` int64 [1] are how many tokens and blocks there are; `tokens` int64 [blocks * block] the token
    of each place of the blocks; `read` int64 [batch, heads, blocks * places, 1] and `kept` [batch, heads, slots, 1]
    where in the line stands what they read and what slots hold next; the mask is [batch, 1, blocks, repeats * block,
    places].
    """

    length: ir.Value
    count: ir.Value
    tokens: ir.Value
    read: ir.Value
    kept: ir.Value
    mask: ir.Value

    @classmethod
    def of(cls, places: Places, heads: int, repeats: int, dtype: torch.dtype) -> Self:
        w, number = places.w, places.number
        block, kept = places.block(), places.kept()
        count = places.blocks(block)
        tokens = places.block_tokens(block, count)
        read = w.emit("Reshape", places.block_places(block, count, kept), number(0, 1, -1, 1))
        read, kept = (
            w.emit("Expand", one, number(1, heads, 1, 1))
            for one in (read, w.emit("Reshape", kept, number(0, 1, -1, 1)))
        )
        mask = places.block_mask(block, count, dtype)
        mask = w.emit("Expand", w.emit("Unsqueeze", mask, number(2)), number(1, 1, repeats, 1, 1))
        joined = w.emit("Concat", number(0, 1), count, w.emit("Mul", block, number(repeats)), number(-1), axis=0)
        mask = w.emit("Reshape", mask, joined)
        return cls(places.tokens, count, tokens, read, kept, mask)

    @classmethod
    def of_several(cls, places: Places, heads: int, repeats: int, dtype: torch.dtype, is_one: ir.Value) -> Self:
        """The same behind a branch: where `is_one` says that one token is read, all is empty and nothing computed."""
        w = places.w

        def several() -> list[ir.Value]:
            made = cls.of(places, heads, repeats, dtype)
            return [made.count, made.tokens, made.read, made.kept, made.mask]

        def nothing() -> list[ir.Value]:
            empty = [w.constant(np.zeros([0] * rank), np.int64) for rank in (1, 1, 4, 4)]
            return [*empty, w.cast(w.constant(np.zeros([0] * 5), np.float32), dtype)]

        branches = ("one_token.places", nothing), ("several_tokens.places", several)
        return cls(places.tokens, *w.choose(is_one, 5, *branches))
