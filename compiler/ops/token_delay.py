"""regraft::token_delay: each token gets what stood some tokens before it, with the state that carries it on.

    x [batch, tokens, features]; past [batch, delay, features] or none (zeros)
    ->  output [batch, tokens, features], present [batch, delay, features]

With z = past followed by x,  output[t] = z[t]  and  present = the last `delay` of z:  output_t = x_{t - delay}.

A mixer behind a window reads the tokens that have left it so: their keys and values are delayed by the window, its
queries are not. The delay is called `tokens` in the schema.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMA = "(Tensor x, Tensor? past, int tokens) -> (Tensor output, Tensor present)"


def token_delay_reference(x: Tensor, past: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    """The definition. Differentiable."""
    before = x.new_zeros(x.shape[0], tokens, x.shape[2]) if past is None else past
    line = torch.cat([before, x], 1)
    return line[:, : x.shape[1]], line[:, x.shape[1] :]


@torch.library.custom_op("regraft::token_delay", mutates_args=(), schema=SCHEMA)
def token_delay(x: Tensor, past: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    """The delay as the module's docstring defines it. Raises ValueError for inputs that do not fit."""
    _check(x, past, tokens)
    output, present = token_delay_reference(x, past, tokens)
    return output.clone(memory_format=torch.contiguous_format), present.clone(memory_format=torch.contiguous_format)


@token_delay.register_fake
def _(x: Tensor, past: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    _check(x, past, tokens)
    return x.new_empty(x.shape), x.new_empty((x.shape[0], tokens, x.shape[2]))


def _check(x: Tensor, past: Tensor | None, tokens: int) -> None:
    if tokens < 1 or x.dim() != 3:
        raise ValueError(f"{tuple(x.shape)} by {tokens}: it takes [batch, tokens, features] and a token at least")
    if past is not None and past.shape[1:] != (tokens, x.shape[2]):
        raise ValueError(f"past {tuple(past.shape)} is not [batch, {tokens}, {x.shape[2]}]")
    if past is not None and past.dtype != x.dtype:
        raise ValueError(f"past is {past.dtype}, x {x.dtype}")


def _save_sizes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.count, ctx.has_past = inputs[0].shape[1], inputs[1] is not None


def _backward(ctx: Any, output: Tensor, present: Tensor) -> tuple[Tensor | None, ...]:
    """The joined gradients stand where past and x stood."""
    line = torch.cat([output, present], 1)
    past, x = torch.split(line, [present.shape[1], ctx.count], 1)
    return x, past if ctx.has_past else None, None


token_delay.register_autograd(_backward, setup_context=_save_sizes)
