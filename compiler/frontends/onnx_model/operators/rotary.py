"""Rotary position embedding: each pair of numbers of a head is turned by an angle that grows with the position."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator


@operator("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor, cos_cache: Tensor, sin_cache: Tensor, position_ids: Tensor | None = None, *, interleaved: int = 0,
    num_heads: int = 0, rotary_embedding_dim: int = 0, node: NodeContext,
) -> Tensor:  # fmt: skip
    """x [batch, heads, tokens, head_dim] or [batch, tokens, heads * head_dim]."""
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    if x.dim() == 4:
        return rotated(x, cos_cache.unsqueeze(1), sin_cache.unsqueeze(1), bool(interleaved), rotary_embedding_dim)
    if not num_heads:
        raise node.refuse("three-dimensional inputs need num_heads", "The file is damaged.")
    heads = torch.unflatten(x, -1, (num_heads, -1))  # [batch, tokens, heads, head_dim]
    turned = rotated(heads, cos_cache.unsqueeze(2), sin_cache.unsqueeze(2), bool(interleaved), rotary_embedding_dim)
    return turned.flatten(2)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, dims: int = 0) -> Tensor:
    """x [..., head_dim] with its first `dims` (0: all) turned; cos and sin [..., dims / 2] broadcast against x.

    Pairs are neighbours where `interleaved`, otherwise number i of the first half and number i of the second.
    """
    kept = None
    if dims and dims != x.shape[-1]:
        x, kept = x[..., :dims], x[..., dims:]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    turned = torch.stack([real, imaginary], dim=-1).flatten(-2) if interleaved else torch.cat([real, imaginary], dim=-1)
    return turned if kept is None else torch.cat([turned, kept], dim=-1)
