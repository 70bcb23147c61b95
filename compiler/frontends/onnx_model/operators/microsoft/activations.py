"""Activations of com.microsoft, alone or after a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT


@operator("Gelu", domain=MICROSOFT)
def gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(a: Tensor, b: Tensor) -> Tensor:
    return F.gelu(a + b)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    left, right = (x + bias).chunk(2, dim=-1)
    return left * F.gelu(right)


@operator("BiasAdd", domain=MICROSOFT)
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip


@operator("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(data: Tensor, bias: Tensor, *, axis: int = 1, is_inner_broadcast: int) -> Tensor:
    """Softmax over all dims from `axis` on. Which dims the bias is broadcast over, its own sizes of 1 say."""
    axis %= data.dim()
    scores = data + bias
    if axis == data.dim() - 1:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores.flatten(axis), dim=-1).reshape(data.shape)
