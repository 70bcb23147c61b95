"""GroupQueryAttention of com.microsoft: attention of decoders, with the cache of keys and values it extends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator
from compiler.frontends.onnx_model.operators.attention import attended, band, joined_mask, merge_heads, split_heads
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT
from compiler.frontends.onnx_model.operators.rotary import rotated
from compiler.ops.rms_norm import rms_norm


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(
    query: Tensor, key: Tensor | None, value: Tensor | None, past_key: Tensor | None, past_value: Tensor | None,
    seqlens_k: Tensor, total_sequence_length: Value, cos_cache: Tensor | None = None, sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None, attention_bias: Tensor | None = None, head_sink: Tensor | None = None,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None, q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None, *, num_heads: int, kv_num_heads: int, causal: int = 1, do_rotary: int = 0,
    rotary_interleaved: int = 0, local_window_size: int = -1, scale: float = 0.0, softcap: float = 0.0,
    smooth_softmax: int = -1, qk_norm_epsilon: float = 1e-6, sliding_window_cache: int = 0, qk_output: int = 0,
    kv_cache_bit_width: int = 0, k_quant_type: str = "NONE", v_quant_type: str = "NONE", node: NodeContext,
) -> tuple[Tensor, ...]:  # fmt: skip
    """query [batch, tokens, heads * dim], or with key and value packed behind it; past [batch, kv_heads, past, dim].

    Sequence b has seqlens_k[b] + 1 keys, the new ones among them.
    """
    if k_scale is not None or v_scale is not None or (k_quant_type, v_quant_type) != ("NONE", "NONE"):
        raise node.refuse("its cache is quantized", "Export the model with a cache in floating point.")
    if sliding_window_cache:
        raise node.refuse("its cache holds a window", "Export the model with a cache of whole sequences.")
    if node.has_output(3):
        raise node.refuse("its scores are read", "Export the model without that output.")
    if key is None or value is None:
        head_dim = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        sizes = [num_heads * head_dim, kv_num_heads * head_dim, kv_num_heads * head_dim]
        query, key, value = torch.split(query, sizes, dim=-1)
    q, k, v = split_heads(query, num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        q, k = rms_norm(q, q_norm_weight, qk_norm_epsilon), rms_norm(k, k_norm_weight, qk_norm_epsilon)
    offset = _offset(q, past_key, seqlens_k)
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise node.refuse("it turns query and key without cos_cache and sin_cache", "The file is damaged.")
        steps = torch.arange(q.shape[2])
        positions = (steps + offset).reshape(-1, q.shape[2]) if position_ids is None else position_ids
        cos, sin = cos_cache[positions].unsqueeze(1), sin_cache[positions].unsqueeze(1)  # [batch, 1, tokens, ...]
        dims = 2 * cos.shape[-1]
        q, k = (rotated(one, cos, sin, bool(rotary_interleaved), dims) for one in (q, k))
    if past_key is not None and past_value is not None:
        kept = _cache_length(past_key, k, total_sequence_length, node)
        k, v = _extended(past_key, k, offset, kept), _extended(past_value, v, offset, kept)
    present = (k, v)
    from_start = isinstance(offset, int) and offset == 0
    is_causal = bool(causal) and from_start
    window = local_window_size - 1 if local_window_size > 0 else -1
    allowed = band(q.shape[2], k.shape[2], offset, window, 0 if causal and not from_start else -1)
    if not causal:
        allowed.append(torch.arange(k.shape[2]) <= seqlens_k.reshape(-1, 1, 1, 1))
    if attention_bias is not None:
        attention_bias = torch.nn.functional.pad(attention_bias, (0, k.shape[2] - attention_bias.shape[-1]))
    mask = joined_mask(allowed, attention_bias)
    if head_sink is not None or smooth_softmax == 1:
        sink = q.new_zeros(num_heads) if head_sink is None else head_sink
        if is_causal:
            mask, is_causal = joined_mask(band(q.shape[2], k.shape[2], 0, -1, 0) + allowed, attention_bias), False
        k, v, mask = _with_sink(k, v, mask, q, sink)
    y = attended(q, k, v, mask, is_causal, scale or None, softcap)
    return (merge_heads(y), *present)[: max(node.output_count, 1)]


def _offset(query: Tensor, past_key: Tensor | None, seqlens_k: Tensor) -> int | Tensor:
    """How many keys each sequence has before its new ones, [batch, 1, 1, 1]; a number where there is but one."""
    if past_key is None:
        return 0
    return (seqlens_k.to(torch.int64).reshape(-1, 1, 1, 1) + 1 - query.shape[2]).clamp(min=0)


def _cache_length(past: Tensor, new: Tensor, total: Value, node: NodeContext) -> int:
    """The length of the present: a past with room for all keys is a buffer, otherwise the new keys follow it.

    What the model states decides, not the sizes of a run: a buffer has a fixed size, or that of the present.
    """
    stated, result = (_stated_length(one) for one in (node.node.inputs[3], node.node.outputs[1:2]))
    is_buffer = stated is not None and stated == result
    if isinstance(stated, int):
        if not isinstance(total, Known):
            raise node.needed(6, "the number of keys")
        is_buffer = isinstance(total.item(), int) and total.item() <= stated
    return past.shape[2] if is_buffer else past.shape[2] + new.shape[2]


def _stated_length(value: Any) -> int | str | None:
    """The third size that the model states of a cache."""
    if isinstance(value, Sequence):
        value = value[0] if value else None
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    size = value.shape[2]
    return size if isinstance(size, int) else size.value


def _extended(past: Tensor, new: Tensor, offset: int | Tensor, length: int) -> Tensor:
    """[batch, heads, length, dim]: of each sequence `offset` keys of the past, and then the new ones."""
    held, count = past.shape[2], new.shape[2]
    places = torch.arange(length).reshape(1, 1, -1, 1)
    is_new = (places >= offset) & (places < offset + count)
    source = torch.where(is_new, places - offset + held, places)
    both = torch.cat([past, new], dim=2)
    return both.gather(2, source.expand(both.shape[0], both.shape[1], length, both.shape[3]))


def _with_sink(
    key: Tensor, value: Tensor, mask: Tensor | None, query: Tensor, sink: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One more key of zeros whose score is `sink` [heads] and whose value is 0: it only adds to softmax's divisor."""
    batch, heads, tokens, _ = query.shape
    bias = query.new_zeros(batch, heads, tokens, key.shape[2])
    if mask is not None:
        bias = torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else bias + mask
    column = sink.reshape(1, -1, 1, 1).to(query.dtype).expand(batch, heads, tokens, 1)
    extended = [torch.nn.functional.pad(one, (0, 0, 0, 1)) for one in (key, value)]
    return extended[0], extended[1], torch.cat([bias, column], dim=-1)
