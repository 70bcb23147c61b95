"""Operators that draw random numbers, from torch's generator: no two runtimes share what an ONNX seed gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.frontends.onnx_model.element_types import dtype_of
from compiler.frontends.onnx_model.known import Known, Size
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator


@operator("RandomNormal")
def random_normal(*, shape: Sequence[Size], dtype: int = 1, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return _normal(shape, dtype_of(dtype), mean, scale)


@operator("RandomNormalLike")
def random_normal_like(x: Value, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return _normal(x.shape, x.dtype if dtype is None else dtype_of(dtype), mean, scale)


@operator("RandomUniform")
def random_uniform(*, shape: Sequence[Size], dtype: int = 1, low: float = 0.0, high: float = 1.0) -> Tensor:
    return _uniform(shape, dtype_of(dtype), low, high)


@operator("RandomUniformLike")
def random_uniform_like(x: Value, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0) -> Tensor:
    return _uniform(x.shape, x.dtype if dtype is None else dtype_of(dtype), low, high)


def _normal(shape: Sequence[Size], dtype: torch.dtype, mean: float, scale: float) -> Tensor:
    return torch.randn(*shape, dtype=dtype) * scale + mean


def _uniform(shape: Sequence[Size], dtype: torch.dtype, low: float, high: float) -> Tensor:
    return torch.rand(*shape, dtype=dtype) * (high - low) + low


@operator("Bernoulli")
def bernoulli(probabilities: Tensor, *, dtype: int | None = None) -> Tensor:
    drawn = torch.bernoulli(probabilities)
    return drawn if dtype is None else drawn.to(dtype_of(dtype))


@operator("Multinomial")
def multinomial(logits: Tensor, *, dtype: int = 6, sample_size: int = 1) -> Tensor:
    """`logits` [batch, classes] are log-probabilities that need not be normalised."""
    drawn = torch.multinomial(torch.softmax(logits, dim=-1), sample_size, replacement=True)
    return drawn.to(dtype_of(dtype))


@operator("Dropout")
def dropout(x: Tensor, *, node: NodeContext) -> Tensor | tuple[Tensor, Tensor]:
    """Until opset 11 it drops nothing when a model is used, as here; from 7 on it could not even be asked to."""
    if not node.has_output(1):
        return x
    return x, torch.ones_like(x, dtype=torch.bool if node.version >= 10 else x.dtype)


@operator("Dropout", since=12)
def dropout_in_training(
    x: Tensor, ratio: Value = None, training_mode: Known | None = None, *, node: NodeContext
) -> Tensor | tuple[Tensor, Tensor]:
    """Drops only in training mode, which is a stored truth value in every model that trains."""
    if training_mode is None or not training_mode.item():
        return dropout(x, node=node)
    dropped = 0.5 if ratio is None else _ratio(ratio, node)
    if dropped == 0:
        return dropout(x, node=node)
    kept = torch.bernoulli(torch.full_like(x, 1.0 - dropped))
    scaled = x * kept / (1.0 - dropped) if dropped < 1 else torch.zeros_like(x)
    return (scaled, kept.bool()) if node.has_output(1) else scaled


def _ratio(ratio: Value, node: NodeContext) -> float:
    if not isinstance(ratio, Known):
        raise node.needed(1, "its ratio")
    return float(ratio.item())
