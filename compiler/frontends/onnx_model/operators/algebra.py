"""Products over named dims, and determinants."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import moved
from compiler.frontends.onnx_model.operator_table import operator


@operator("Einsum", since=12)
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    return moved(lambda *tensors: torch.einsum(equation, list(tensors)), *inputs)


@operator("Det", since=11)
def det(x: Tensor) -> Tensor:
    determinant: Tensor = torch.linalg.det(x)
    return determinant
