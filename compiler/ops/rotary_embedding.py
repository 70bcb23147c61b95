"""regraft::rotary_embedding(x, cos, sin, interleaved) -> y: turns pairs of numbers by an angle that a position has.

    x         [batch, heads, tokens, head_dim]
    cos, sin  [batch or 1, tokens, rotary_dim / 2]; one angle a pair, rotary_dim at most head_dim
    ->        [batch, heads, tokens, head_dim]

    y[a] = x[a] * cos - x[b] * sin        y[b] = x[b] * cos + x[a] * sin

Pair i is (a, b) = (i, i + rotary_dim / 2), or (2 i, 2 i + 1) where `interleaved`. Numbers from rotary_dim on stay as
they are. Computed in at least float32 and returned in the dtype of x.

Source: Su et al. 2021, arXiv:2104.09864, eq. 34; the halves are those of GPT-NeoX. The words are those of ONNX
RotaryEmbedding, opset 23.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotary_embedding_reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The definition, in ATen operators."""
    rotary_dim = 2 * cos.shape[-1]
    wide = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    cos, sin = cos.to(wide).unsqueeze(1), sin.to(wide).unsqueeze(1)  # [batch or 1, 1, tokens, rotary_dim / 2]
    turning, kept = x[..., :rotary_dim].to(wide), x[..., rotary_dim:]
    first, second = (turning[..., 0::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    pairs = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(pairs, dim=-1).flatten(-2) if interleaved else torch.cat(pairs, dim=-1)
    return torch.cat((turned.to(x.dtype), kept), dim=-1)


@torch.library.custom_op("regraft::rotary_embedding", mutates_args=())
def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the first `2 * cos.shape[-1]` numbers of every head by its token's angles."""
    return rotary_embedding_reference(x, cos, sin, interleaved)


@rotary_embedding.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    fits = x.dim() == 4 and cos.dim() == sin.dim() == 3 and 2 * cos.shape[-1] <= x.shape[-1]
    if not fits or cos.shape[-1] != sin.shape[-1]:
        problem = f"x {tuple(x.shape)}, cos {tuple(cos.shape)} and sin {tuple(sin.shape)}"
        raise RuntimeError(
            f"rotary_embedding needs [batch, heads, tokens, head_dim] and one angle a pair, not {problem}"
        )
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    x, cos, sin, interleaved = inputs
    ctx.save_for_backward(x, cos, sin)
    ctx.interleaved = interleaved


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """With respect to x it is the turn back, by minus the angles. Angles are not trained: through the reference."""
    x, cos, sin = ctx.saved_tensors
    grad_x = rotary_embedding_reference(grad, cos, -sin, ctx.interleaved) if ctx.needs_input_grad[0] else None
    grad_cos = grad_sin = None
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        with torch.enable_grad():
            angles = [angle.detach().requires_grad_() for angle in (cos, sin)]
            again = rotary_embedding_reference(x.detach(), angles[0], angles[1], ctx.interleaved)
        grad_cos, grad_sin = torch.autograd.grad(again, angles, grad)
    return grad_x, grad_cos, grad_sin, None


rotary_embedding.register_autograd(_backward, setup_context=_save_inputs)
