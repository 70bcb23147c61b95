"""Softmax, LogSoftmax and Hardmax; before opset 13 they see a matrix, of the dims before `axis` and the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compiler.frontends.onnx_model.operator_table import operator


def _hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first of the largest values, 0 elsewhere."""
    axis %= x.dim()
    places = torch.arange(x.shape[axis]).reshape([-1 if dim == axis else 1 for dim in range(x.dim())])
    return (places == x.argmax(axis, keepdim=True)).to(x.dtype)


NORMALIZATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Hardmax": _hardmax,
}


def _register(name: str, normalize: Callable[[Tensor, int], Tensor]) -> None:
    @operator(name, since=1)
    def of_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
        axis = axis % x.dim() if axis < 0 else axis
        if axis == x.dim() - 1:
            return normalize(x, -1)
        rows = x.flatten(axis) if axis < x.dim() else x.unsqueeze(-1)
        return normalize(rows, -1).reshape(x.shape)

    @operator(name, since=13)
    def along_axis(x: Tensor, *, axis: int = -1) -> Tensor:
        return normalize(x, axis)


for _name, _normalize in NORMALIZATIONS.items():
    _register(_name, _normalize)
