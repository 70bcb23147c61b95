"""regraft::token_delay: each token gets what stood some tokens before it, with the state that carries it on.

    x [batch, tokens, features]; past [batch, delay, features] and past_length int64 [batch], or neither for sequences
    from their start  ->  output [batch, tokens, features], present [batch, delay, features]

    output_p = x_{p - delay} at position p (past_length and the new tokens before it), zeros where p < delay

The state holds position j in slot j mod delay, so that a new token takes the place of the one that it gets: one token
reads and writes one slot, and nothing moves. Slots that no position has reached are zeros.

A mixer behind a window reads the tokens that have left it so: their keys and values are delayed by the window, its
queries are not. The delay is called `tokens` in the schema.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMA = "(Tensor x, Tensor? past, Tensor? past_length, int tokens) -> (Tensor output, Tensor present)"


def token_delay_reference(
    x: Tensor, past: Tensor | None, past_length: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor]:
    """The definition. Differentiable."""
    held = x.new_zeros(x.shape[0], tokens, x.shape[2]) if past is None else past
    before, after = _slots(x, past_length, tokens)
    line = torch.cat([held.gather(1, _for_features(before, x)), x], 1)  # from the oldest position to the newest
    return line[:, : x.shape[1]], torch.zeros_like(held).scatter(1, _for_features(after, x), line[:, x.shape[1] :])


@torch.library.custom_op("regraft::token_delay", mutates_args=(), schema=SCHEMA)
def token_delay(x: Tensor, past: Tensor | None, past_length: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    """The delay as the module's docstring defines it. Raises ValueError for inputs that do not fit."""
    _check(x, past, past_length, tokens)
    output, present = token_delay_reference(x, past, past_length, tokens)
    return output.clone(memory_format=torch.contiguous_format), present


@token_delay.register_fake
def _(x: Tensor, past: Tensor | None, past_length: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    _check(x, past, past_length, tokens)
    return x.new_empty(x.shape), x.new_empty((x.shape[0], tokens, x.shape[2]))


def _check(x: Tensor, past: Tensor | None, past_length: Tensor | None, tokens: int) -> None:
    if tokens < 1 or x.dim() != 3:
        raise ValueError(f"{tuple(x.shape)} by {tokens}: it takes [batch, tokens, features] and a token at least")
    if (past is None) != (past_length is None):
        raise ValueError("past and past_length come together")
    if past is not None and past.shape[1:] != (tokens, x.shape[2]):
        raise ValueError(f"past {tuple(past.shape)} is not [batch, {tokens}, {x.shape[2]}]")
    if past is not None and past.dtype != x.dtype:
        raise ValueError(f"past is {past.dtype}, x {x.dtype}")


def _slots(x: Tensor, past_length: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    """The slots from the oldest position to the newest, before and after the new tokens. Each int64 [batch, delay]"""
    length = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if past_length is None else past_length
    before = length.unsqueeze(1) + torch.arange(tokens, device=x.device)
    return before % tokens, (before + x.shape[1]) % tokens


def _for_features(slots: Tensor, x: Tensor) -> Tensor:
    return slots.unsqueeze(-1).expand(-1, -1, x.shape[2])


def _save_sizes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, past, past_length, tokens = inputs
    ctx.count, ctx.has_past = x.shape[1], past is not None
    ctx.save_for_backward(*_slots(x, past_length, tokens))


def _backward(ctx: Any, output: Tensor, present: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients, joined as the line was, stand where past and x stood."""
    before, after = (_for_features(slots, present) for slots in ctx.saved_tensors)
    line = torch.cat([output, present.gather(1, after)], 1)
    past, x = torch.split(line, [present.shape[1], ctx.count], 1)
    return x, torch.zeros_like(past).scatter(1, before, past) if ctx.has_past else None, None, None


token_delay.register_autograd(_backward, setup_context=_save_sizes)
