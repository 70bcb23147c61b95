"""regraft::routed_attention: causal attention to all tokens or to a window with sinks, by a score a sequence.

    query [batch, heads, tokens, head_dim]; key, value [batch, kv_heads, tokens, head_dim], keys rotated already
    score [batch]; past_key, past_value [batch, kv_heads, capacity, head_dim] and past_length int64 [batch]: all three,
    or none for sequences from their start; total_sequence_length: the most keys of any row with the new ones
    ->  output [batch, heads, tokens, head_dim], present_key, present_value: the buffers with the new tokens written;
        without buffers, copies of key and value

The token at position p (past_length and the new tokens before it) of a sequence with score s sees the positions

    {0 .. p}                                    where s > 0 or p < first
    {j <= p: j < sinks or j > p - window}       otherwise

and its output is the softmax over them of scale * query_p . key_j, times value_j. So a score that is settled by the
first `first` tokens, as that of regraft::context_score, is one that no token before it is settled asks for, and pieces
of a sequence give what the whole gives. Head h reads key and value head h // (heads / kv_heads).

Source: Shazeer et al. 2017, arXiv:1701.06538, section 2; Xiao et al. 2023, arXiv:2309.17453, section 3.2 (sinks).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.ops.recurrence import differentiated
from compiler.ops.sliding_window_attention import check_past, check_window, sliding_window_attention_in_blocks

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor score, Tensor? past_key, Tensor? past_value, "
    "Tensor? past_length, SymInt total_sequence_length, int window, int sinks, int first, float scale) "
    "-> (Tensor output, Tensor present_key, Tensor present_value)"
)
Results = tuple[Tensor, Tensor, Tensor]


def routed_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, total_sequence_length: int, window: int, sinks: int, first: int, scale: float,
) -> Results:  # fmt: skip
    """The definition. Differentiable in all but the score; memory grows with tokens x keys."""
    tokens, device = query.shape[2], query.device
    if past_key is None or past_value is None or past_length is None:
        keys, values = key, value
        past_length = torch.zeros_like(score, dtype=torch.int64)
        positions = past_length[:, None] + torch.arange(tokens, device=device)
    else:
        positions = past_length[:, None] + torch.arange(tokens, device=device)  # [batch, tokens]
        places = positions[:, None, :, None].expand(key.shape)
        keys, values = past_key.scatter(2, places, key), past_value.scatter(2, places, value)
    own, others = positions[..., None], torch.arange(keys.shape[2], device=device)
    near = (others < sinks) | (others > own - window)
    seen = (others <= own) & (near | (score > 0)[:, None, None] | (own < first))  # [batch, tokens, keys]
    output = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, seen[:, None], scale=scale, enable_gqa=True
    )
    return output, keys, values


@torch.library.custom_op("regraft::routed_attention", mutates_args=(), schema=SCHEMA)
def routed_attention(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, total_sequence_length: int, window: int, sinks: int, first: int, scale: float,
) -> Results:  # fmt: skip
    """Attention as the module's docstring defines it. Raises ValueError for inputs that do not fit.

    Of whole sequences that all go without attention to all tokens, only windows are computed.
    """
    _check(query, key, value, score, past_key, past_value, past_length, total_sequence_length, window, sinks, first)
    if past_key is None and not bool((score > 0).any()):
        output = _near(query, key, value, window, sinks, first, scale)
        return output, key.clone(), value.clone()
    given = (query, key, value, score, past_key, past_value, past_length, total_sequence_length)
    output, keys, values = routed_attention_reference(*given, window, sinks, first, scale)
    if past_key is None:
        keys, values = key.clone(), value.clone()
    return output.contiguous(), keys, values


def _near(
    query: Tensor, key: Tensor, value: Tensor, window: int, sinks: int, first: int, scale: float
) -> Tensor:  # fmt: skip
    lead = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, :first], key[:, :, :first], value[:, :, :first], is_causal=True, scale=scale, enable_gqa=True
    )
    rest = sliding_window_attention_in_blocks(query, key, value, None, None, None, window, sinks, scale)[0]
    return torch.cat([lead, rest[:, :, first:]], 2)


@routed_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, total_sequence_length: int, window: int, sinks: int, first: int, scale: float,
) -> Results:  # fmt: skip
    _check(query, key, value, score, past_key, past_value, past_length, None, window, sinks, first)
    held = (key, value) if past_key is None or past_value is None else (past_key, past_value)
    present_key, present_value = (one.new_empty(one.shape) for one in held)
    return query.new_empty(query.shape), present_key, present_value


def _check(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, total: int | None, window: int, sinks: int, first: int,
) -> None:  # fmt: skip
    check_window(query, key, value, window, sinks)
    check_past(past_key, past_value, past_length)
    if first < 1:
        raise ValueError(f"{first} first tokens: at least 1 is possible")
    if score.dim() != 1:
        raise ValueError(f"score {tuple(score.shape)} is not [batch]")
    if past_key is not None and total is not None and total > past_key.shape[2]:
        raise ValueError(f"{total} keys do not fit into buffers for {past_key.shape[2]}")


def _save(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.settings = inputs[7:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, score, past_key, past_value, past_length = ctx.saved_tensors

    def compute(
        query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None
    ) -> Results:
        return routed_attention_reference(
            query, key, value, score, past_key, past_value, past_length, *ctx.settings
        )  # fmt: skip

    found = differentiated(compute, (query, key, value, past_key, past_value), gradients)
    return (*found[:3], None, *found[3:], None, None, None, None, None, None)


routed_attention.register_autograd(_backward, setup_context=_save)
