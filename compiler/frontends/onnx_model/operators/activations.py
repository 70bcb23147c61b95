"""Activation functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.unsigned_integers import in_int64

EXACT_SOFTPLUS_ABOVE = {torch.float64: 40.0}
"""From where x stands for log(1 + exp(x)), by dtype; torch's own limit of 20 is too low for float64."""


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("PRelu")
def prelu_per_channel(x: Tensor, slope: Tensor) -> Tensor:
    """A slope for all, or one for every channel."""
    return prelu(x, slope.reshape(-1, *[1] * (x.dim() - 2)) if x.dim() > 2 else slope)


@operator("PRelu", since=7)
@in_int64
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """torch's own form takes a slope for all, or one for every channel; ONNX's broadcasts."""
    if x.is_floating_point() and _is_per_channel(x, slope):
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, x * slope, x)


def _is_per_channel(x: Tensor, slope: Tensor) -> bool:
    if x.dim() < 2 or slope.dim() != x.dim() - 1 or not all(isinstance(size, int) for size in slope.shape):
        return False
    channels = x.shape[1]
    return all(size == 1 for size in slope.shape[1:]) and isinstance(channels, int) and slope.shape[0] == channels


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return torch.ops.aten.elu.default(x, alpha, gamma)  # type: ignore[no-any-return]


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0.0)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    return F.hardswish(x)


@operator("Sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=EXACT_SOFTPLUS_ABOVE.get(x.dtype, 20.0))


@operator("Softsign")
def softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@operator("Mish")
def mish(x: Tensor) -> Tensor:
    return F.mish(x)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@operator("SwiGLU")
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return swish(a, alpha=alpha) * b


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    outside = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))
    return outside.to(x.dtype)
