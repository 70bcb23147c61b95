"""The dialect's recurrent operators: a delay, and two that have kernels, for which bfloat16 runs in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import DATA_TYPES, MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.window_places import TurnedSlots


@translates("regraft.linear_attention.default")
def linear_attention(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    past_state: fx.Node | None,
    decay: fx.Node | None,
    beta: fx.Node | None,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
    scale: float,
) -> tuple[ir.Value, ...]:
    """query, key and value [batch, tokens, heads * dim], past_state [batch, kv_heads, d_k, d_v]."""
    return _with_state(
        w,
        node,
        "LinearAttention",
        (query, key, value, past_state, decay, beta),
        q_num_heads=q_num_heads,
        kv_num_heads=kv_num_heads,
        update_rule=update_rule,
        scale=float(scale),
    )


@translates("regraft.causal_conv.default")
def causal_conv(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    past_state: fx.Node | None,
    activation: str,
) -> tuple[ir.Value, ...]:
    """x [batch, channels, tokens], weight [channels, 1, k], past_state [batch, channels, k - 1]."""
    return _with_state(w, node, "CausalConvWithState", (x, weight, bias, past_state), activation=activation)


@translates("regraft.token_delay.default")
def token_delay(
    w: GraphWriter, node: fx.Node, x: fx.Node, past: fx.Node | None, past_length: fx.Node | None, tokens: int
) -> tuple[ir.Value, ...]:
    """x [batch, tokens, features], past [batch, delay, features]: what new tokens push out is read, then written over.

    The write depends on what was read, so that both may be in the same memory. One token copies one slot, not all.
    """
    batch, count = w.dim_of(x, 0), w.dim_of(x, 1)
    if past is None or past_length is None:
        zero = ir.tensor([0], dtype=DATA_TYPES[x.meta["val"].dtype])
        sizes = [batch, w.constant([tokens], np.int64), w.size(x.meta["val"].shape[2])]
        held = w.emit("ConstantOfShape", w.emit("Concat", *sizes, axis=0), value=zero)
        none = ir.tensor([0], dtype=DATA_TYPES[torch.int64])
        length = w.shared(("no length", batch), lambda: w.emit("ConstantOfShape", batch, value=none))
    else:
        held, length = w.value(past), w.value(past_length)
    turned = w.shared(("turned", length, count, tokens), lambda: TurnedSlots.of(w, length, count, tokens))
    line = w.emit("Concat", w.emit("GatherND", held, turned.read, batch_dims=1), w.value(x), axis=1)
    output, kept = w.emit_several("Split", line, turned.lengths, outputs=2, axis=1)
    return output, w.emit("ScatterND", held, turned.written, kept)


def _with_state(
    w: GraphWriter, node: fx.Node, kernel: str, inputs: tuple[fx.Node | None, ...], **attributes: Any
) -> tuple[ir.Value, ...]:
    """A kernel that gives an output and a state; each in the dtype that `node` has."""

    def given(one: fx.Node | None) -> ir.Value | None:
        if one is None:
            return None
        dtype = one.meta["val"].dtype
        return w.tensor(one, torch.float32 if dtype == torch.bfloat16 else dtype)

    made = w.emit_several(kernel, *map(given, inputs), outputs=2, domain=MICROSOFT, **attributes)
    dtypes = [one.dtype for one in node.meta["val"]]
    return tuple(
        w.cast(one, dtype) if dtype == torch.bfloat16 else one for one, dtype in zip(made, dtypes, strict=True)
    )
