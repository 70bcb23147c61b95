"""Attention as ai.onnx Attention, which has the fast CPU kernel; a mask becomes one float mask for all layers."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size, same_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import expanded, reshaped, shape_of
from compiler.errors import CompilerError


@translates("aten.scaled_dot_product_attention.default")
def scaled_dot_product_attention(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    mask: fx.Node | None,
    dropout: float,
    causal: bool,
    scale: Any,
    grouped: bool,
) -> ir.Value:
    return attended(w, node, query, key, value, mask, causal, scale, 0.0)


@translates("regraft.attention.default")
def attention(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    mask: fx.Node | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> ir.Value:
    return attended(w, node, query, key, value, mask, causal, scale, softcap)


def attended(
    w: GraphWriter,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    mask: fx.Node | None,
    causal: bool,
    scale: Any,
    softcap: float,
) -> ir.Value:
    """query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, positions, head_dim] -> query's shape."""
    if len(shape_of(query)) != 4:
        problem = f"attention over {len(shape_of(query))}-d queries"
        raise CompilerError("lowering to ONNX", problem, "Give queries as [batch, heads, tokens, head_dim].", node.name)
    dtype = query.meta["val"].dtype
    kernel_type = torch.float32 if dtype == torch.bfloat16 else dtype
    result = w.emit(
        "Attention",
        *(w.tensor(one, kernel_type) for one in (query, key, value)),
        additive_mask(w, mask, shape_of(query)[2], kernel_type) if mask is not None else None,
        is_causal=int(causal) or None,
        scale=float(scale) if scale is not None else None,
        softcap=float(softcap) or None,
    )
    return result if kernel_type == dtype else w.cast(result, dtype)


def additive_mask(w: GraphWriter, mask: fx.Node, token_count: Any, dtype: torch.dtype) -> ir.Value:
    """The mask as numbers of `dtype`, 0 where attended, with a row for every query.

    ONNX Runtime does not broadcast over queries. It gives zeros for rows that hold only the lowest number.
    """

    def make() -> ir.Value:
        shape = shape_of(mask)
        value = w.tensor(mask) if mask.meta["val"].dtype == torch.bool else w.tensor(mask, dtype)
        if mask.meta["val"].dtype == torch.bool:
            lowest = torch.finfo(dtype).min
            value = w.emit("Where", value, w.tensor(0.0, dtype), w.tensor(lowest, dtype))
        if len(shape) < 2:
            value, shape = reshaped(w, value, shape, [1] * (2 - len(shape)) + shape), [1] * (2 - len(shape)) + shape
        wanted = [*shape[:-2], token_count, shape[-1]]
        if known_size(shape[-2]) == 1 and not same_size(token_count, 1):
            value = expanded(w, value, shape, wanted)
        return value

    return w.shared(("additive mask", mask.name, str(token_count), dtype), make)
