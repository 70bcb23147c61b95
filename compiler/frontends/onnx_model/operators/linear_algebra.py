"""Products of matrices: MatMul and Gemm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import moved
from compiler.frontends.onnx_model.operator_table import operator


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return moved(torch.matmul, a, b)


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: int = 0,
    trans_b: int = 0,
) -> Tensor:
    """alpha * a' @ b' + beta * c, where ' turns a matrix that is marked so. A plain layer becomes `linear`."""
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"it multiplies two matrices, not tensors of {a.dim()} and {b.dim()} dims")
    if not a.is_floating_point():
        alpha, beta = int(alpha), int(beta)
    if c is not None and beta == 0:
        c = None
    x = a.t() if trans_a else a
    if alpha == 1 and trans_b and (c is None or (beta == 1 and c.dim() == 1 and c.shape[0] == b.shape[0])):
        return F.linear(x, b, c)
    weight = b.t() if trans_b else b
    if c is not None:
        return moved(lambda added, left, right: torch.addmm(added, left, right, beta=beta, alpha=alpha), c, x, weight)
    product = moved(torch.matmul, x, weight)
    return product if alpha == 1 else product * alpha
