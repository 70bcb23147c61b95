"""regraft::bidirectional_window_attention: attention to near tokens on either side and to the first, as a mask allows.

    query [batch, heads, tokens, head_dim]; key, value [batch, kv_heads, tokens, head_dim], keys rotated already
    mask bool [batch or 1, heads or 1, tokens or 1, tokens], true where a token may see another; none: all may
    ->  output [batch, heads, tokens, head_dim], log_sum_exp [batch, heads, tokens]

The token at position p sees itself, whatever the mask says, and of the others

    V(p) = {j: |p - j| < window or j < sinks, and mask(p, j)}

    scores_j = scale * query_p . key_j;   output_p = sum over V(p) of softmax(scores)_j value_j
    log_sum_exp_p = log(sum over V(p) of exp(scores_j))

Head h reads key and value head h // (heads / kv_heads). log_sum_exp is float32 at least; so are all sums. Sequences of
more than `blocks_from` tokens are read in blocks, so that work and memory grow with tokens x window.

Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1 (windows; the sinks are its global tokens, read by all).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from compiler.ops.recurrence import differentiated
from compiler.ops.sliding_window_attention import check_window

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, int window, int sinks, float scale) "
    "-> (Tensor output, Tensor log_sum_exp)"
)
WORTH_BLOCKS = 2
"""How many times as many tokens as a block sees make blocks worth their gathering."""


def blocks_from(window: int, sinks: int) -> int:
    """How many tokens a sequence has at most that is read at once."""
    return WORTH_BLOCKS * (sinks + 3 * window)


def bidirectional_window_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    """All scores at once, and those outside the window dropped. Differentiable."""
    precise = torch.promote_types(query.dtype, torch.float32)
    places = torch.arange(query.shape[2], device=query.device)
    seen = _seen(places.unsqueeze(1), places.unsqueeze(0), places.unsqueeze(0) < sinks, window)
    seen = (seen if mask is None else seen & mask) | (places.unsqueeze(1) == places.unsqueeze(0))
    keys, values = (one.to(precise).repeat_interleave(query.shape[1] // key.shape[1], 1) for one in (key, value))
    output, sums = _attended(query.to(precise), keys, values, seen, scale)
    return output.to(query.dtype), sums


def bidirectional_window_attention_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The same numbers from blocks of `window` tokens, each against the sinks, itself and a block on either side."""
    precise = torch.promote_types(query.dtype, torch.float32)
    tokens = query.shape[2]
    count = -(-tokens // window)
    starts = window * torch.arange(count, device=query.device).unsqueeze(1)  # [blocks, 1]
    first = torch.arange(sinks, device=query.device).expand(count, sinks)
    moving = starts + torch.arange(-window, 2 * window, device=query.device)
    places = torch.cat([first, moving], 1)  # [blocks, sinks + 3 window]
    inside = torch.cat([first < tokens, (moving >= sinks) & (moving < tokens)], 1)
    held = places.clamp(0, tokens - 1)
    # What stands behind the last token in its block is the last token again.
    own = (starts + torch.arange(window, device=query.device)).clamp(max=tokens - 1)  # [blocks, window]
    is_sink = torch.arange(places.shape[1], device=query.device) < sinks
    rows, columns = own.unsqueeze(2), places.unsqueeze(1)
    seen = _seen(rows, columns, is_sink, window)
    if mask is not None:
        found = mask[:, :, 0][:, :, held].unsqueeze(3) if mask.shape[2] == 1 else mask[:, :, rows, held.unsqueeze(1)]
        seen = seen & found  # [batch or 1, heads or 1, blocks, window, places]
    seen = (seen | (rows == columns)) & inside.unsqueeze(1)
    repeats = query.shape[1] // key.shape[1]
    keys, values = (one.to(precise).repeat_interleave(repeats, 1)[:, :, held] for one in (key, value))
    output, sums = _attended(query.to(precise)[:, :, own], keys, values, seen, scale)
    output, sums = (one.flatten(2, 3)[:, :, :tokens] for one in (output, sums))
    return output.to(query.dtype), sums


def _seen(rows: Tensor, columns: Tensor, is_sink: Tensor, window: int) -> Tensor:
    """Which places tokens see where all may see each other."""
    return ((rows - columns).abs() < window) | is_sink


def _attended(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """query [..., queries, head_dim] over keys and values [..., places, head_dim], and the sums [..., queries]."""
    scores = (scale * (query @ keys.transpose(-1, -2))).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def _chosen(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    """At once or in blocks, whichever is less work."""
    long = query.shape[2] > blocks_from(window, sinks)
    form = bidirectional_window_attention_in_blocks if long else bidirectional_window_attention_reference
    return form(query, key, value, mask, window, sinks, scale)


@torch.library.custom_op("regraft::bidirectional_window_attention", mutates_args=(), schema=SCHEMA)
def bidirectional_window_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention as the module's docstring defines it. Raises ValueError for inputs that do not fit."""
    check_window(query, key, value, window, sinks)
    output, sums = _chosen(query, key, value, mask, window, sinks, scale)
    return output.contiguous(), sums.contiguous()


@bidirectional_window_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    check_window(query, key, value, window, sinks)
    precise = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=precise)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Computes it again and differentiates that."""
    return differentiated(_chosen, (*ctx.saved_tensors, *ctx.settings), gradients)


bidirectional_window_attention.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.regraft.bidirectional_window_attention)  # type: ignore[untyped-decorator, unused-ignore]
def _flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], mask: Any, window: int, sinks: int,
    *others: Any, **options: Any,
) -> int:  # fmt: skip
    """Scores and values of the places that a token is compared with."""
    batch, heads, tokens, head_dim = query
    visible = sinks + 3 * window if tokens > blocks_from(window, sinks) else tokens
    return 2 * 2 * batch * heads * tokens * visible * head_dim
