"""Running sums and products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import as_dtype, widened
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.operator_table import operator


@operator("CumSum", since=11)
def cum_sum(x: Tensor, axis: Known, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(torch.cumsum, 0, x, int(axis.item()), bool(exclusive), bool(reverse))


@operator("CumProd", since=26)
def cum_prod(x: Tensor, axis: Known, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(torch.cumprod, 1, x, int(axis.item()), bool(exclusive), bool(reverse))


def _cumulated(
    function: Callable[..., Tensor], neutral: int, x: Tensor, axis: int, exclusive: bool, reverse: bool
) -> Tensor:
    """`exclusive` leaves each item itself out; `reverse` starts from the end."""
    axis %= x.dim()
    value = widened(x)
    value = value.flip(axis) if reverse else value
    if exclusive:
        value = torch.ops.aten.slice.Tensor(value, axis, 0, -1)
        value = F.pad(value, [0, 0] * (x.dim() - 1 - axis) + [1, 0], value=neutral)
    value = function(value, axis, dtype=value.dtype)
    return as_dtype(value.flip(axis) if reverse else value, x.dtype)
