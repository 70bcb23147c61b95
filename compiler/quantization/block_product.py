"""x @ W.T with W in blocks of whole numbers times scales, through which the scales can learn.

    W[o, b * size + i] = steps[o, b, i] * scales[o, b]
    dL/dscales[o, b] = sum over i of steps[o, b, i] dL/dW[o, b * size + i],   dL/dW = (dL/dy).T @ x

W is made anew on the way back, so that a model's weights never stand in memory in float. Products are of x's dtype.
Source: Esser et al. 2019, arXiv:1902.08153, for steps that stay (section 2, the gradient to the step size);
Chen et al. 2024, arXiv:2407.11062, section 3.3 (training the scales alone, end to end).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class BlockProduct(torch.autograd.Function):
    """y [..., out] of x [..., in], integer steps [out, blocks, size], scales [out, blocks]; blocks * size is `in`
    or more, and what lies past it does not count.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(x, steps, scales)
        return torch.nn.functional.linear(x, _weight(x, steps, scales))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x, steps, scales = ctx.saved_tensors
        grad_x = grad_scales = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ _weight(x, steps, scales)
        if ctx.needs_input_grad[2]:
            grad_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2)  # [out, in]
            padded = torch.nn.functional.pad(grad_weight, (0, steps[0].numel() - x.shape[-1]))
            grad_scales = (padded.view(steps.shape) * steps).sum(-1, dtype=torch.float32).to(scales.dtype)
        return grad_x, None, grad_scales


def _weight(x: Tensor, steps: Tensor, scales: Tensor) -> Tensor:
    return (steps * scales.to(x.dtype)[..., None]).flatten(1)[:, : x.shape[-1]]
