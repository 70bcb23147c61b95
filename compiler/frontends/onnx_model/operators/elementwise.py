"""Operators that work number by number: arithmetic, comparison, rounding, trigonometry, activations."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.operator_table import Operand, operator


@operator("Add")
def add(a: Operand, b: Operand) -> Tensor:
    return torch.add(a, b)  # type: ignore[arg-type, unused-ignore]


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)
