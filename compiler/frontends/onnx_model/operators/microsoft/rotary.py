"""RotaryEmbedding of com.microsoft, which ONNX took over with its inputs in another order."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT
from compiler.frontends.onnx_model.operators.rotary import rotated


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(
    x: Tensor, position_ids: Tensor, cos_cache: Tensor, sin_cache: Tensor, *, interleaved: int = 0,
    is_packed_batching: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0, scale: float = 1.0,
    node: NodeContext,
) -> Tensor:  # fmt: skip
    """x [batch, heads, tokens, head_dim] or [batch, tokens, heads * head_dim]; position_ids [batch, tokens] or [1]."""
    if is_packed_batching:
        raise node.refuse("its sequences are packed", "Export the model with a batch dim.")
    if scale != 1:
        raise node.refuse(f"it scales by {scale}", "Rotary embeddings with scale 1 are read.")
    by_heads = x.dim() == 4
    tokens = x.shape[2] if by_heads else x.shape[1]
    if position_ids.dim() == 1:
        position_ids = (torch.arange(tokens) + position_ids).unsqueeze(0)
    cos, sin = cos_cache[position_ids], sin_cache[position_ids]  # [batch or 1, tokens, dims / 2]
    dims = rotary_embedding_dim or 2 * cos.shape[-1]
    if by_heads:
        return rotated(x, cos.unsqueeze(1), sin.unsqueeze(1), bool(interleaved), dims)
    heads = torch.unflatten(x, -1, (num_heads, -1) if num_heads else (-1, dims))
    return rotated(heads, cos.unsqueeze(2), sin.unsqueeze(2), bool(interleaved), dims).flatten(2)
