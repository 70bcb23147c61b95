"""Operators that make tensors from sizes and numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator


@operator("Constant")
def constant(*, node: NodeContext) -> Tensor:
    """Constants of numbers are read before anything runs; what arrives here holds none."""
    raise node.refuse("it holds no tensor of numbers", "Strings and sparse tensors are not read.")


@operator("ConstantOfShape")
def constant_of_shape(shape: Known, *, value: Known | None = None) -> Tensor:
    fill, dtype = (0.0, torch.float32) if value is None else (value.item(), value.dtype)
    return torch.full(shape.sizes(), fill, dtype=dtype)
