"""Attention over buffers of keys and values, as com.microsoft GroupQueryAttention; float32 inside for other floats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.errors import CompilerError

INT8_BITS = 8
HEAD_MULTIPLE = 8
"""The kernel takes heads of multiples of it."""
ROTARY_MULTIPLE = 16
"""The kernel turns multiples of it in heads of multiples of it; others are turned before it."""


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
    q, k, head_dim = w.value(query), w.value(key), int(shape_of(past_key)[3])
    refuse_head_dim(head_dim, node)
    if cos_cache is not None and sin_cache is not None:
        rotary_dim = 2 * int(shape_of(cos_cache)[-1])
        if head_dim % ROTARY_MULTIPLE or rotary_dim % ROTARY_MULTIPLE:
            angles = w.value(cos_cache), w.value(sin_cache), _positions(w, query, seqlens_k)
            q, k = (
                w.emit(
                    "RotaryEmbedding",
                    one,
                    *angles,
                    num_heads=heads,
                    interleaved=int(rotary_interleaved) or None,
                    rotary_embedding_dim=rotary_dim if rotary_dim < head_dim else None,
                )
                for one, heads in ((q, num_heads), (k, kv_num_heads))
            )
            cos_cache = sin_cache = None
    is_quantized = k_scale is not None and v_scale is not None
    return w.emit_several(
        "GroupQueryAttention",
        q,
        k,
        *(w.value(one) for one in (value, past_key, past_value, seqlens_k)),
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
        rotary_interleaved=int(rotary_interleaved and cos_cache is not None) or None,
        kv_cache_bit_width=INT8_BITS if is_quantized else None,
        k_quant_type=_granularity(k_scale),
        v_quant_type=_granularity(v_scale),
    )


def refuse_head_dim(head_dim: int, node: fx.Node) -> None:
    """Raise CompilerError for heads that the kernel does not take."""
    if head_dim % HEAD_MULTIPLE:
        hint = f"ONNX Runtime's GroupQueryAttention takes multiples of {HEAD_MULTIPLE}: leave make-incremental out."
        raise CompilerError("lowering to ONNX", f"heads of {head_dim} numbers", hint, node.name)


def _positions(w: GraphWriter, query: fx.Node, seqlens_k: fx.Node) -> ir.Value:
    """The places of the new tokens, int64 [batch, tokens]."""

    def make() -> ir.Value:
        count = w.dim_of(query, 1)
        keys = w.emit("Add", w.cast(w.value(seqlens_k), torch.int64), w.constant([1], np.int64))
        past = w.emit("Max", w.emit("Sub", keys, count), w.constant([0], np.int64))
        axes = w.constant([0], np.int64)
        steps = w.emit("Range", w.constant(0, np.int64), w.emit("Squeeze", count, axes), w.constant(1, np.int64))
        return w.emit("Add", w.emit("Unsqueeze", past, w.constant([1], np.int64)), steps)

    positions: ir.Value = w.shared(("positions", seqlens_k.name), make)
    return positions


def _granularity(scale: fx.Node | None) -> str | None:
    if scale is None:
        return None
    return "PER_TENSOR" if shape_of(scale) in ([], [1]) else "PER_CHANNEL"
