"""Operators that make tensors from sizes and numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.element_types import dtype_of
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator


@operator("Constant")
def constant(*, node: NodeContext) -> Tensor:
    """Constants of numbers are read before anything runs; what arrives here holds none."""
    raise node.refuse("it holds no tensor of numbers", "Strings and sparse tensors are not read.")


@operator("ConstantOfShape")
def constant_of_shape(shape: Known, *, value: Known | None = None) -> Tensor:
    fill, dtype = (0.0, torch.float32) if value is None else (value.item(), value.dtype)
    return torch.full(shape.sizes(), fill, dtype=dtype)


@operator("Range")
def range_(start: Known, limit: Known, delta: Known) -> Tensor:
    """Types of 16 bits are counted in float32, as `stash_type` says."""
    narrow = start.dtype in (torch.float16, torch.bfloat16)
    counted = torch.float32 if narrow else start.dtype
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=counted).to(start.dtype)


@operator("EyeLike")
def eye_like(x: Value, *, dtype: int | None = None, k: int = 0, node: NodeContext) -> Tensor:
    """Ones on diagonal `k`, of the input's shape and, unless `dtype` says otherwise, its dtype."""
    if len(x.shape) != 2:
        raise node.refuse(f"its input has {len(x.shape)} dims", "It takes matrices.")
    rows, columns = (torch.arange(size) for size in x.shape)
    diagonal = columns - rows.unsqueeze(1) == k
    return diagonal.to(x.dtype if dtype is None else dtype_of(dtype))
