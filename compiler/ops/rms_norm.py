"""regraft::rms_norm(x, weight, epsilon) -> y

y = x * rsqrt(mean(x ** 2, last dim) + epsilon) * weight, computed in at least float32 and returned in the dtype of x.
Shapes:  x and y [..., width], weight [width].
Source:  Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; ONNX RMSNormalization with axis -1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The definition, in ATen operators."""
    wide = torch.promote_types(x.dtype, torch.float32)
    normal = x.to(wide)
    normal = normal * torch.rsqrt(normal.pow(2).mean(-1, keepdim=True) + epsilon)
    return (normal * weight.to(wide)).to(x.dtype)


@torch.library.custom_op("regraft::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise the last dim to a root mean square of 1 and scale it by `weight`."""
    return rms_norm_reference(x, weight, epsilon).contiguous()


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    if weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        raise RuntimeError(f"rms_norm needs weight [{x.shape[-1]}] for x {tuple(x.shape)}, not {tuple(weight.shape)}")
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, epsilon = inputs
    ctx.save_for_backward(x, weight)
    ctx.epsilon = epsilon


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """With r = rsqrt(mean(x**2) + epsilon) and g = grad * weight:

    dx = r * g - x * r**3 * mean(g * x)      dweight = sum(grad * x * r) over all dims but the last
    """
    x, weight = ctx.saved_tensors
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, grad_wide = x.to(wide), grad.to(wide)
    inverse = torch.rsqrt(x_wide.pow(2).mean(-1, keepdim=True) + ctx.epsilon)
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        scaled = grad_wide * weight.to(wide)
        grad_x = inverse * scaled - x_wide * inverse.pow(3) * (scaled * x_wide).mean(-1, keepdim=True)
        grad_x = grad_x.to(x.dtype)
    if ctx.needs_input_grad[1]:
        grad_weight = (grad_wide * x_wide * inverse).flatten(0, -2).sum(0).to(weight.dtype)
    return grad_x, grad_weight, None


rms_norm.register_autograd(_backward, setup_context=_save_inputs)
