"""States: what an incremental Program keeps between calls, such as the keys and values that attention has seen.

An incremental Program reads some new tokens and the states that earlier calls left:

    input_ids [batch, sequence]; attention_mask [batch, total_sequence], ones and then zeros, whose row sums count the
    tokens so far with the new ones; logit_positions [kept], which of the new tokens give logits;
    past_key_values.{i}.key and .value [batch, kv_heads, capacity, head_dim], buffers with room for capacity tokens;
    past_state.{i} [batch, ...], states of fixed size: of recurrences, windows, delays
    ->  logits [batch, kept, vocabulary]; present.{i}.key and .value, the same buffers with the new tokens written;
    present_state.{i}

Names and layout are those of onnxruntime-genai's decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from compiler.program import Program

BATCH, SEQUENCE, TOTAL, CAPACITY, KEPT = "batch", "sequence", "total_sequence", "capacity", "kept"
"""Names of an incremental Program's dims."""
TOKENS, MASK, KEPT_POSITIONS = "input_ids", "attention_mask", "logit_positions"
"""Names of its inputs that are no states, in order."""


@dataclass(frozen=True)
class State:
    """An input and the output that is its next value, by name."""

    past: str
    present: str


def incremental_inputs(program: Program, batch: Sequence[Tensor], room: int = 0) -> tuple[Tensor, ...]:
    """What an incremental Program needs to read whole sequences from their start and to give every token's logits.

    `batch` holds token ids [batch, tokens] and, where the captured model takes one, a mask of their shape; states are
    empty, with room for these tokens and `room` more.
    """
    if len(batch) == len(program.inputs):
        return tuple(batch)
    tokens = batch[0]
    mask = batch[1] if len(batch) > 1 else torch.ones_like(tokens)
    count = tokens.shape[1]
    given = {TOKENS: tokens, MASK: mask, KEPT_POSITIONS: torch.arange(count)}
    sizes = {BATCH: tokens.shape[0], CAPACITY: count + room}
    return tuple(
        given[spec.name]
        if spec.name in given
        else torch.zeros(
            [size if isinstance(size, int) else sizes[size.name] for size in spec.shape],
            dtype=getattr(torch, spec.dtype),
        )
        for spec in program.inputs
    )


def hold_state_as(program: Program, past: str, dtype: torch.dtype) -> None:
    """Let the state whose input is `past` be of `dtype` between calls: its input, its output and their examples."""
    (present,) = (state.present for state in program.states if state.past == past)
    name = str(dtype).removeprefix("torch.")
    program.outputs = tuple(replace(one, dtype=name) if one.name == present else one for one in program.outputs)
    place = [spec.name for spec in program.inputs].index(past)
    program.inputs = tuple(replace(one, dtype=name) if one.name == past else one for one in program.inputs)
    program.example_inputs = tuple(
        one.to(dtype) if index == place else one for index, one in enumerate(program.example_inputs)
    )
    node = program.placeholders()[place]
    node.meta["val"] = node.meta["val"].to(dtype)
