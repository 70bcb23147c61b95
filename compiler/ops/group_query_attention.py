"""regraft::group_query_attention: causal attention of new tokens over buffers of keys and values that they extend.

    query [batch, tokens, heads * head_dim]; key, value [batch, tokens, kv_heads * head_dim]
    past_key, past_value [batch, kv_heads, capacity, head_dim]: buffers, float or int8
    seqlens_k int32 [batch]: keys of each row with the new ones, less 1; total_sequence_length: the most keys of any row
    cos_cache, sin_cache [positions, rotary_dim / 2] or none: both, where query and key are to be rotated
    k_scale, v_scale [1] or [kv_heads * head_dim] where the buffers are int8, which then hold round(x / scale)
    ->  output [batch, tokens, heads * head_dim], present_key, present_value: the buffers with the new tokens written

Row b has past = max(seqlens_k[b] + 1 - tokens, 0) keys; its token i stands at position past + i, is written there, and
attends to positions from past + i - local_window_size + 1 (from 0 where that is -1) to past + i. Head h reads key and
value head h // (heads / kv_heads). scores = softcap * tanh(query @ key.T * scale / softcap), without tanh where softcap
is 0. `rotary_interleaved` rotates neighbours, otherwise halves. Rows are as long as their buffers allow: capacity is at
least total_sequence_length.

Source: com.microsoft GroupQueryAttention; Ainslie et al. 2023, arXiv:2305.13245; Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.ops.attention import attention_reference

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, Tensor seqlens_k, "
    "SymInt total_sequence_length, Tensor? cos_cache, Tensor? sin_cache, Tensor? k_scale, Tensor? v_scale, "
    "int num_heads, int kv_num_heads, float scale, float softcap, int local_window_size, bool rotary_interleaved) "
    "-> (Tensor, Tensor, Tensor)"
)
NO_WINDOW = -1


def group_query_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, seqlens_k: Tensor,
    total_sequence_length: int, cos_cache: Tensor | None, sin_cache: Tensor | None, k_scale: Tensor | None,
    v_scale: Tensor | None, num_heads: int, kv_num_heads: int, scale: float, softcap: float, local_window_size: int,
    rotary_interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The definition. Differentiable in query, key and value; memory grows with tokens x capacity."""
    tokens = query.shape[1]
    q, k, v = _heads(query, num_heads), _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    past = (seqlens_k.to(torch.int64) + 1 - tokens).clamp(min=0)  # [batch]
    positions = past[:, None] + torch.arange(tokens, device=query.device)  # [batch, tokens]
    if cos_cache is not None and sin_cache is not None:
        cos, sin = cos_cache[positions][:, None], sin_cache[positions][:, None]  # [batch, 1, tokens, rotary_dim / 2]
        q, k = (_rotated(one, cos, sin, rotary_interleaved) for one in (q, k))
    present_key = _extended(past_key, _stored(k, k_scale), positions)
    present_value = _extended(past_value, _stored(v, v_scale), positions)
    keys, values = _loaded(present_key, k_scale, q), _loaded(present_value, v_scale, q)
    places = torch.arange(past_key.shape[2], device=query.device)
    allowed = places <= positions[:, None, :, None]  # [batch, 1, tokens, capacity]
    if local_window_size != NO_WINDOW:
        allowed = allowed & (places > positions[:, None, :, None] - local_window_size)
    if softcap > 0:
        attended = attention_reference(q, keys, values, allowed, False, scale, softcap)
    else:
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, allowed, scale=scale, enable_gqa=num_heads != kv_num_heads
        )
    return attended.transpose(1, 2).flatten(2).contiguous(), present_key, present_value


@torch.library.custom_op("regraft::group_query_attention", mutates_args=(), schema=SCHEMA)
def group_query_attention(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, seqlens_k: Tensor,
    total_sequence_length: int, cos_cache: Tensor | None, sin_cache: Tensor | None, k_scale: Tensor | None,
    v_scale: Tensor | None, num_heads: int, kv_num_heads: int, scale: float, softcap: float, local_window_size: int,
    rotary_interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The reference. Raises ValueError for sizes that do not fit."""
    if total_sequence_length > past_key.shape[2]:
        raise ValueError(f"{total_sequence_length} keys do not fit into buffers for {past_key.shape[2]}")
    return group_query_attention_reference(
        query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache, k_scale,
        v_scale, num_heads, kv_num_heads, scale, softcap, local_window_size, rotary_interleaved,
    )  # fmt: skip


@group_query_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(past_key), torch.empty_like(past_value)


def _heads(packed: Tensor, count: int) -> Tensor:
    """[batch, tokens, count * head_dim] as [batch, count, tokens, head_dim]."""
    return packed.reshape(*packed.shape[:2], count, -1).transpose(1, 2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [batch, heads, tokens, head_dim] with its first rotary_dim numbers turned, the rest passed on."""
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        left, right = turned[..., ::2], turned[..., 1::2]
        both = torch.stack([left * cos - right * sin, right * cos + left * sin], dim=-1).flatten(-2)
    else:
        left, right = turned.chunk(2, dim=-1)
        both = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return torch.cat([both, rest], dim=-1)


def _stored(x: Tensor, scale: Tensor | None) -> Tensor:
    """x [batch, kv_heads, tokens, head_dim] as the buffers hold it."""
    if scale is None:
        return x
    return torch.round(x / _per_channel(scale, x)).clamp(-128, 127).to(torch.int8)


def _loaded(buffer: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    return buffer if scale is None else buffer.to(like.dtype) * _per_channel(scale, buffer)


def _per_channel(scale: Tensor, buffer: Tensor) -> Tensor:
    """A scale a tensor, or one a channel, [kv_heads, 1, head_dim]."""
    return scale if scale.numel() == 1 else scale.view(buffer.shape[1], 1, buffer.shape[3])


def _extended(buffer: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """The buffer with `new` [batch, kv_heads, tokens, head_dim] at each row's positions [batch, tokens]."""
    index = positions[:, None, :, None].expand(new.shape)
    return buffer.scatter(2, index, new)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*(one for one in inputs if isinstance(one, Tensor)))
    ctx.rest = [None if isinstance(one, Tensor) else (one,) for one in inputs]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiates the reference with respect to query, key and value; buffers are constants."""
    saved = iter(ctx.saved_tensors)
    arguments = [next(saved) if rest is None else rest[0] for rest in ctx.rest]
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in arguments[:3]]
        outputs = group_query_attention_reference(*leaves, *arguments[3:])
    pairs = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if gradient is not None and output.requires_grad
    ]
    found = torch.autograd.grad([one for one, _ in pairs], leaves, [one for _, one in pairs], allow_unused=True)
    return (*found, *(None for _ in arguments[3:]))


group_query_attention.register_autograd(_backward, setup_context=_setup_context)
