"""regraft::attention: scaled dot-product attention with grouped heads, a softcap, and a boolean or additive mask.

    query [batch, heads, tokens, head_dim]
    key   [batch, kv_heads, keys, head_dim]     value [batch, kv_heads, keys, value_dim]
    mask  broadcastable to [batch, heads, tokens, keys]; boolean (True: attend) or additive in the dtype of query
    ->    [batch, heads, tokens, value_dim]

    scores = query @ key.T * scale;   scores = softcap * tanh(scores / softcap) where softcap > 0;   + mask
    output = softmax(scores) @ value

Head h reads key and value head h // (heads / kv_heads). `is_causal` lets token i attend to keys 0 to i, counted from
the start, as in aten's scaled_dot_product_attention; with a mask as well, both hold. A row that may attend to nothing
gives zeros, as aten's op does. Scores and softmax are float32 for half precision inputs.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv:2305.13245; softcap:
Gemma Team 2024, arXiv:2408.00118, section 2. The words are those of ONNX Attention, opset 23.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMA = "(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, float scale, float softcap) -> Tensor"
NAME = "regraft::attention"


def attention_reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, softcap: float
) -> Tensor:
    """The definition, in the paper's formula. Differentiable; memory grows with tokens x keys."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key = key.repeat_interleave(repeats, dim=1)  # [batch, heads, keys, head_dim]
        value = value.repeat_interleave(repeats, dim=1)  # [batch, heads, keys, value_dim]
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    scores = query.to(precise) @ key.to(precise).transpose(-2, -1) * scale  # [batch, heads, tokens, keys]
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(precise)
    if is_causal:
        tokens, keys = scores.shape[-2], scores.shape[-1]
        allowed = torch.ones(tokens, keys, dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    blind = (scores == -torch.inf).all(dim=-1, keepdim=True)  # [batch, heads, tokens, 1]
    weights = torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)
    return (weights @ value.to(precise)).to(query.dtype)  # [batch, heads, tokens, value_dim]


@torch.library.custom_op(NAME, mutates_args=(), schema=SCHEMA)
def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, softcap: float
) -> Tensor:
    """Attention as the module's docstring defines it. Raises ValueError for shapes that do not fit."""
    _check_shapes(query, key, value, mask)
    if softcap > 0 or (is_causal and mask is not None):
        return attention_reference(query, key, value, mask, is_causal, scale, softcap)
    if mask is not None and mask.dim() < 2:
        mask = mask.view(1, -1)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    ).contiguous()


@attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, softcap: float
) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads")
    if query.shape[-1] != key.shape[-1] or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} do not fit")
    if mask is not None and mask.dtype not in (torch.bool, query.dtype):
        raise ValueError(f"a mask is boolean or {query.dtype}, not {mask.dtype}")


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    *tensors, is_causal, scale, softcap = inputs
    ctx.save_for_backward(*tensors)  # type: ignore[arg-type]
    ctx.settings = (is_causal, scale, softcap)  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiates the reference: exact, and as hungry for memory as it is."""
    tensors: tuple[Any, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
    is_causal, scale, softcap = ctx.settings  # type: ignore[attr-defined]
    with torch.enable_grad():
        leaves: Any = [None if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        query, key, value, mask = leaves
        output = attention_reference(query, key, value, mask, is_causal, scale, softcap)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, gradient, allow_unused=True))
    gradients = [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
    return (*gradients, None, None, None)


attention.register_autograd(_backward, setup_context=_setup_context)
