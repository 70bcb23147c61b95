"""Attention over buffers of keys and values, as com.microsoft GroupQueryAttention; float32 inside for other floats."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import shape_of

INT8_BITS = 8


@translates("regraft.group_query_attention.default")
def group_query_attention(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    past_key: fx.Node,
    past_value: fx.Node,
    seqlens_k: fx.Node,
    total_sequence_length: fx.Node | int,
    cos_cache: fx.Node | None,
    sin_cache: fx.Node | None,
    k_scale: fx.Node | None,
    v_scale: fx.Node | None,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    softcap: float,
    local_window_size: int,
    rotary_interleaved: bool,
) -> tuple[ir.Value, ...]:
    """query, key, value [batch, tokens, heads * head_dim]; buffers [batch, kv_heads, capacity, head_dim]."""

    def optional(one: fx.Node | None) -> ir.Value | None:
        return None if one is None else w.value(one)

    total = w.shared(
        ("total_sequence_length", str(total_sequence_length)),
        lambda: w.cast(w.emit("Squeeze", w.size(total_sequence_length), w.constant([0])), torch.int32),
    )
    is_quantized = k_scale is not None and v_scale is not None
    return w.emit_several(
        "GroupQueryAttention",
        *(w.value(one) for one in (query, key, value, past_key, past_value, seqlens_k)),
        total,
        optional(cos_cache),
        optional(sin_cache),
        None,
        None,
        None,
        optional(k_scale),
        optional(v_scale),
        outputs=3,
        domain=MICROSOFT,
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=float(scale),
        softcap=float(softcap) or None,
        local_window_size=local_window_size,
        do_rotary=int(cos_cache is not None) or None,
        rotary_interleaved=int(rotary_interleaved) or None,
        kv_cache_bit_width=INT8_BITS if is_quantized else None,
        k_quant_type=_granularity(k_scale),
        v_quant_type=_granularity(v_scale),
    )


def _granularity(scale: fx.Node | None) -> str | None:
    if scale is None:
        return None
    return "PER_TENSOR" if shape_of(scale) in ([], [1]) else "PER_CHANNEL"
