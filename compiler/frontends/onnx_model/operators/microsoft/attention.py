"""Attention and MultiHeadAttention of com.microsoft: what transformer optimizers fuse encoders and decoders to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.attention import (
    RAW,
    attended,
    band,
    joined_mask,
    merge_heads,
    score_output,
    split_heads,
)
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT
from compiler.frontends.onnx_model.operators.quantized_layers import matmul_integer_to_float

MASK_FILTER_VALUE = -10000.0


@operator("Attention", domain=MICROSOFT)
def attention(
    x: Tensor, weights: Tensor, bias: Tensor | None = None, mask_index: Tensor | None = None,
    past: Tensor | None = None, attention_bias: Tensor | None = None, past_sequence_length: Tensor | None = None, *,
    num_heads: int, scale: float = 0.0, mask_filter_value: float = MASK_FILTER_VALUE, do_rotary: int = 0,
    past_present_share_buffer: int = 0, qkv_hidden_sizes: list[int] | None = None, unidirectional: int = 0,
    rotary_embedding_dim: int = 0, node: NodeContext,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x [batch, tokens, hidden], weights [hidden, query + key + value], past [2, batch, heads, past, head_dim]."""
    if past_present_share_buffer or past_sequence_length is not None:
        raise node.refuse("past and present share a buffer", "Export the model with a past that grows.")
    if do_rotary:
        raise node.refuse("it turns query and key itself", "Use MultiHeadAttention with RotaryEmbedding nodes.")
    projected = x @ weights if bias is None else x @ weights + bias
    sizes = qkv_hidden_sizes or [weights.shape[1] // 3] * 3
    settings = (num_heads, scale, mask_filter_value, bool(unidirectional))
    return _of_projected(torch.split(projected, sizes, dim=-1), mask_index, past, attention_bias, settings, node)


@operator("QAttention", domain=MICROSOFT)
def quantized_attention(
    x: Tensor, weights: Tensor, bias: Tensor, x_scale: Tensor, weight_scale: Tensor, mask_index: Tensor | None = None,
    x_zero_point: Tensor | None = None, weight_zero_point: Tensor | None = None, past: Tensor | None = None, *,
    num_heads: int, scale: float = 0.0, mask_filter_value: float = MASK_FILTER_VALUE, do_rotary: int = 0,
    past_present_share_buffer: int = 0, unidirectional: int = 0, node: NodeContext,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Attention whose x and weights are codes; what follows their product is the same."""
    if past_present_share_buffer or do_rotary:
        raise node.refuse("it shares a buffer or turns query and key", "Export the model without either.")
    projected = matmul_integer_to_float(x, weights, x_scale, weight_scale, x_zero_point, weight_zero_point, bias)
    settings = (num_heads, scale, mask_filter_value, bool(unidirectional))
    return _of_projected(projected.chunk(3, dim=-1), mask_index, past, None, settings, node)


def _of_projected(
    parts: Sequence[Tensor], mask_index: Tensor | None, past: Tensor | None, attention_bias: Tensor | None,
    settings: tuple[int, float, float, bool], node: NodeContext,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`parts` are query, key and value; `settings` the heads, scale, mask_filter_value, and whether unidirectional."""
    num_heads, scale, mask_filter_value, unidirectional = settings
    query, key, value = (split_heads(one, num_heads) for one in parts)
    past_length = 0
    if past is not None:
        past_length = past.shape[3]
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
    added = _added_mask(mask_index, key.shape[2], mask_filter_value, query, node)
    if attention_bias is not None:
        added = attention_bias if added is None else added + attention_bias
    y = merge_heads(_attended_from(past_length, query, key, value, added, unidirectional, scale))
    return (y, torch.stack([key, value])) if node.has_output(1) else (y,)


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: Tensor, key: Tensor | None = None, value: Tensor | None = None, bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None, attention_bias: Tensor | None = None, past_key: Tensor | None = None,
    past_value: Tensor | None = None, past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None, *, num_heads: int, scale: float = 0.0,
    mask_filter_value: float = MASK_FILTER_VALUE, unidirectional: int = 0, node: NodeContext,
) -> tuple[Tensor, ...]:  # fmt: skip
    """query [batch, tokens, hidden]; key and value likewise, or [batch, heads, keys, head_dim], or packed."""
    if past_sequence_length is not None or cache_indirection is not None:
        raise node.refuse("past and present share a buffer", "Export the model with a past that grows.")
    q, k, v = _heads(query, key, value, bias, num_heads, node)
    past_length = 0
    if past_key is not None and past_value is not None:
        past_length = past_key.shape[2]
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    added = _added_mask(key_padding_mask, k.shape[2], mask_filter_value, q, node)
    if attention_bias is not None:
        added = attention_bias if added is None else added + attention_bias
    results = [merge_heads(_attended_from(past_length, q, k, v, added, bool(unidirectional), scale)), k, v]
    if node.has_output(3):
        results.append(score_output(q, k, None, False, scale or None, 0.0, RAW))
    return tuple(results[: max(node.output_count, 1)])


def _heads(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, num_heads: int, node: NodeContext
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [batch, heads, tokens, head_dim], with the bias of their projections added."""
    if query.dim() == 5:  # [batch, tokens, heads, 3, head_dim]
        query, key, value = (one.flatten(2) for one in query.unbind(3))
    elif key is not None and key.dim() == 5:  # [batch, keys, heads, 2, head_dim]
        key, value = (one.flatten(2) for one in key.unbind(3))
    if key is None or value is None:
        raise node.refuse("key or value is missing", "Only a packed query stands for all three.")
    by_heads = key.dim() == 4
    if bias is not None:
        hidden = query.shape[-1]
        query = query + bias[:hidden]
        if not by_heads:
            key, value = key + bias[hidden : 2 * hidden], value + bias[2 * hidden :]
    if by_heads:
        return split_heads(query, num_heads), key, value
    return split_heads(query, num_heads), split_heads(key, num_heads), split_heads(value, num_heads)


def _attended_from(
    past_length: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    added: Tensor | None,
    unidirectional: bool,
    scale: float,
) -> Tensor:
    """Attention with an added mask; `unidirectional`: token i sits behind the past and sees no later key."""
    from_start = isinstance(past_length, int) and past_length == 0
    if not unidirectional or from_start:
        return attended(query, key, value, added, unidirectional, scale or None, 0.0)
    seen = band(query.shape[2], key.shape[2], past_length, -1, 0)
    return attended(query, key, value, joined_mask(seen, added), False, scale or None, 0.0)


def _added_mask(
    mask: Tensor | None, keys: int, mask_filter_value: float, query: Tensor, node: NodeContext
) -> Tensor | None:
    """`mask_filter_value` where a key is masked, otherwise 0, as [batch, 1, 1 or tokens, keys].

    mask [batch, keys] or [batch, tokens, keys] is 0 for masked ones; mask [batch] says where the keys end, mask
    [2 * batch] where they end and then where they start.
    """
    if mask is None:
        return None
    if mask.dim() == 1:
        allowed = _between(mask, keys, query.shape[0], node)
    elif mask.dim() in (2, 3):
        allowed = (mask > 0).unsqueeze(1)
        allowed = allowed.unsqueeze(1) if mask.dim() == 2 else allowed
    else:
        raise node.refuse(f"its mask has {mask.dim()} dims", "Masks [batch, keys] and [batch, tokens, keys] are read.")
    zero = torch.zeros((), dtype=query.dtype)
    return torch.where(allowed, zero, max(mask_filter_value, torch.finfo(query.dtype).min))


def _between(limits: Tensor, keys: int, batch: int, node: NodeContext) -> Tensor:
    """Which keys lie before the end, and from the start on: [batch, 1, 1, keys]."""
    positions = torch.arange(keys)
    if statically_known_true(limits.shape[0] == 2 * batch):
        ends, starts = (one.reshape(-1, 1, 1, 1) for one in limits.chunk(2))
        return (positions < ends) & (positions >= starts)
    if statically_known_true(limits.shape[0] == 3 * batch + 2):
        raise node.refuse("its mask is [3 * batch + 2]", "Masks [batch], [2 * batch] and [batch, keys] are read.")
    return positions < limits.reshape(-1, 1, 1, 1)
