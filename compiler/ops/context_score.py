"""regraft::context_score: a linear classifier of the first tokens of a sequence, with the state that carries it on.

    hidden [batch, tokens, width]; weight [2 * width], bias []; past_state [batch, 2 * width + 1] and past_length int64
    [batch]: both, or none for sequences from their start
    ->  score [batch], present_state

    score = bias + weight . (mean of h_0 to h_(n-1), maximum of h_0 to h_(n-1))

over the first n = `first` tokens of each sequence, or over those that there are while they are fewer. Later tokens
change nothing. The state holds sums, maxima and the score, in float32 at least. No gradient flows: what reads a score
only asks for its sign.

Source: Shazeer et al. 2017, arXiv:1701.06538, section 2 (a gate that decides what is computed).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMA = (
    "(Tensor hidden, Tensor weight, Tensor bias, Tensor? past_state, Tensor? past_length, int first) "
    "-> (Tensor score, Tensor present_state)"
)


def context_score_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, past_state: Tensor | None, past_length: Tensor | None, first: int
) -> tuple[Tensor, Tensor]:
    """The definition."""
    batch, tokens, width = hidden.shape
    x = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if past_state is None or past_length is None:
        past_state, past_length = x.new_zeros(batch, 2 * width + 1), torch.zeros_like(x[:, 0, 0], dtype=torch.int64)
    positions = past_length[:, None] + torch.arange(tokens, device=x.device)
    is_read = (positions < first).unsqueeze(-1)  # [batch, tokens, 1]
    total = past_state[:, :width] + torch.where(is_read, x, 0).sum(1)
    before = past_state[:, width:-1].masked_fill(past_length[:, None] == 0, -torch.inf)
    highest = torch.maximum(before, torch.where(is_read, x, -torch.inf).amax(1))
    count = (past_length + tokens).clamp(max=first)[:, None]
    score = torch.cat([total / count, highest], 1) @ weight.to(x.dtype) + bias.to(x.dtype)
    score = torch.where(past_length >= first, past_state[:, -1], score)
    return score, torch.cat([total, highest, score[:, None]], 1)


@torch.library.custom_op("regraft::context_score", mutates_args=(), schema=SCHEMA)
def context_score(
    hidden: Tensor, weight: Tensor, bias: Tensor, past_state: Tensor | None, past_length: Tensor | None, first: int
) -> tuple[Tensor, Tensor]:
    """The reference. Raises ValueError for inputs that do not fit."""
    _check(hidden, weight, past_state, past_length, first)
    return context_score_reference(hidden, weight, bias, past_state, past_length, first)


@context_score.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor, past_state: Tensor | None, past_length: Tensor | None, first: int
) -> tuple[Tensor, Tensor]:
    _check(hidden, weight, past_state, past_length, first)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    batch, _, width = hidden.shape
    return hidden.new_empty((batch,), dtype=dtype), hidden.new_empty((batch, 2 * width + 1), dtype=dtype)


def _check(
    hidden: Tensor, weight: Tensor, past_state: Tensor | None, past_length: Tensor | None, first: int
) -> None:  # fmt: skip
    if first < 1 or hidden.dim() != 3:
        raise ValueError(f"{tuple(hidden.shape)}, {first} first: it reads [batch, tokens, width] and a token at least")
    if weight.shape != (2 * hidden.shape[2],):
        raise ValueError(f"weight {tuple(weight.shape)} is not [{2 * hidden.shape[2]}]")
    if (past_state is None) != (past_length is None):
        raise ValueError("past_state and past_length come together")
    if past_state is not None and past_state.shape[1:] != (2 * hidden.shape[2] + 1,):
        raise ValueError(f"past_state {tuple(past_state.shape)} is not [batch, {2 * hidden.shape[2] + 1}]")


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
    return (None,) * 6


context_score.register_autograd(_backward)
