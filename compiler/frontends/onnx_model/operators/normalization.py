"""Normalization by mean and variance, by root mean square, by a norm, and over neighbouring channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import as_dtype
from compiler.frontends.onnx_model.known import Size
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.ops.rms_norm import rms_norm

MVN_EPSILON = 1e-9
"""What ONNX's definition of MeanVarianceNormalization adds to the standard deviation."""


@operator("BatchNormalization")
def batch_normalization_by_mode(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    is_test: int = 0,
    node: NodeContext,
) -> Tensor | tuple[Tensor, ...]:
    """Before version 14 more outputs than one ask for training; spatial=0 has statistics for every place by itself."""
    training = not is_test and any(node.has_output(index) for index in range(1, 5))
    flat, shape = x if spatial else x.flatten(1), mean.shape
    scale, bias, mean, var = (one if spatial else one.flatten() for one in (scale, bias, mean, var))
    if not training:
        return _normalized(flat, scale, bias, mean, var, epsilon).reshape(x.shape)
    y, batch_mean, batch_var = _normalized_by_batch(flat, scale, bias, epsilon)
    running = _running(mean, batch_mean, momentum), _running(var, batch_var, momentum)
    return y.reshape(x.shape), *(one.reshape(shape) for one in (*running, batch_mean, batch_var))


@operator("BatchNormalization", since=14)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    if not training_mode:
        return _normalized(x, scale, bias, mean, var, epsilon)
    y, batch_mean, batch_var = _normalized_by_batch(x, scale, bias, epsilon)
    return y, _running(mean, batch_mean, momentum), _running(var, batch_var, momentum)


def _normalized(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float) -> Tensor:
    """With statistics that are given. Vectors of another dtype than x are computed with in the widest of them."""
    if x.dim() < 2:
        return _normalized(x.unsqueeze(-1), scale, bias, mean, var, epsilon).squeeze(-1)
    widest = reduce(torch.promote_types, (one.dtype for one in (x, scale, bias, mean, var)))
    wide, scale, bias, mean, var = (as_dtype(one, widest) for one in (x, scale, bias, mean, var))
    return as_dtype(F.batch_norm(wide, mean, var, scale, bias, False, 0.1, epsilon), x.dtype)


def _normalized_by_batch(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """With the mean and the population variance of `x` itself; gives those too."""
    wide = as_dtype(x, torch.promote_types(x.dtype, torch.float32))
    dims = [dim for dim in range(x.dim()) if dim != 1]
    mean, var = wide.mean(dims, keepdim=True), wide.var(dims, correction=0, keepdim=True)
    shape = [-1, *[1] * (x.dim() - 2)]
    y = (wide - mean) * torch.rsqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape)
    return as_dtype(y, x.dtype), mean.flatten(), var.flatten()


def _running(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    return as_dtype(old * momentum + new * (1 - momentum), old.dtype)


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return torch.instance_norm(x, scale, bias, None, None, True, 0.1, epsilon, False)


@operator("LayerNormalization", since=17)
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    node: NodeContext,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Over all dims from `axis` on. The second and third outputs are the mean and 1 / standard deviation."""
    shape = list(x.shape[axis:])
    if _has_shape(scale, shape) and (bias is None or _has_shape(bias, shape)):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if not node.has_output(1) and not node.has_output(2):
        return y
    wide = as_dtype(x, torch.float32) if stash_type == 1 else x
    dims = list(range(axis % x.dim(), x.dim()))
    return y, wide.mean(dims, keepdim=True), torch.rsqrt(wide.var(dims, correction=0, keepdim=True) + epsilon)


@operator("RMSNormalization", since=23)
def rms_normalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    shape = list(x.shape[axis:])
    if not _has_shape(scale, shape):
        return F.rms_norm(x, shape, None, epsilon) * scale
    if len(shape) == 1:
        return rms_norm(x, scale, epsilon)  # type: ignore[no-any-return]
    return F.rms_norm(x, shape, scale, epsilon)


def _has_shape(tensor: Tensor, shape: Sequence[Size]) -> bool:
    """Whether a weight has just that shape, rather than one that broadcasts. A symbolic size equals no number."""
    return tensor.dim() == len(shape) and all(
        isinstance(wanted, int) and size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )


@operator("GroupNormalization", since=18)
def group_normalization_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Version 18 has one scale and bias a group, not a channel."""
    repeats = x.shape[1] // num_groups
    scale, bias = (one.unsqueeze(1).expand(-1, repeats).flatten() for one in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("GroupNormalization", since=21)
def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """x / (bias + alpha * mean of the squares of `size` neighbouring channels) ** beta"""
    squares = (x * x).flatten(2).unsqueeze(1)
    padded = F.pad(squares, [0, 0, (size - 1) // 2, size // 2])
    means = F.avg_pool2d(padded, [size, 1], 1).squeeze(1).reshape(x.shape)
    return x / (bias + alpha * means).pow(beta)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2, node: NodeContext) -> Tensor:
    """Where the norm is zero, so is the result."""
    if p not in (1, 2):
        raise node.refuse(f"p is {p}", "ONNX defines p = 1 and p = 2.")
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    dims = [0, 2, 3] if axes is None else axes
    centred = x - x.mean(dims, keepdim=True)
    return centred / ((centred * centred).mean(dims, keepdim=True).sqrt() + MVN_EPSILON)
