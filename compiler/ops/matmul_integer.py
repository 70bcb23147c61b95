"""regraft::matmul_integer(a, b, a_zero_point, b_zero_point) -> int32: the product of two matrices of codes.

    a int8 or uint8 [..., m, k], b int8 or uint8 [..., k, n]
    a_zero_point [] or [m] or [..., m, 1], b_zero_point [] or [n] or [..., 1, n], or none   ->   int32 [..., m, n]

    y = (a - a_zero_point) @ (b - b_zero_point)          exact in integers

Source: ONNX MatMulInteger, opset 10.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

SCHEMA = "(Tensor a, Tensor b, Tensor? a_zero_point, Tensor? b_zero_point) -> Tensor"


def matmul_integer_reference(a: Tensor, b: Tensor, a_zero_point: Tensor | None, b_zero_point: Tensor | None) -> Tensor:
    """The definition, in 32-bit integers."""
    return torch.matmul(_centred(a, _of_rows(a_zero_point)).int(), _centred(b, b_zero_point).int())


def _of_rows(zero_point: Tensor | None) -> Tensor | None:
    """A vector of zero points holds for rows."""
    return zero_point[:, None] if zero_point is not None and zero_point.dim() == 1 else zero_point


def _centred(codes: Tensor, zero_point: Tensor | None) -> Tensor:
    return codes.double() if zero_point is None else codes.double() - zero_point.double()


@torch.library.custom_op("regraft::matmul_integer", mutates_args=(), schema=SCHEMA)
def matmul_integer(a: Tensor, b: Tensor, a_zero_point: Tensor | None, b_zero_point: Tensor | None) -> Tensor:
    """The same numbers as the reference, through float64 products: sums below 2**53 are exact there, and fast."""
    return torch.matmul(_centred(a, _of_rows(a_zero_point)), _centred(b, b_zero_point)).to(torch.int32)


@matmul_integer.register_fake
def _(a: Tensor, b: Tensor, a_zero_point: Tensor | None, b_zero_point: Tensor | None) -> Tensor:
    for codes in (a, b):
        if codes.dtype not in (torch.int8, torch.uint8):
            raise ValueError(f"a matrix of {codes.dtype}; int8 or uint8 is needed")
    return torch.matmul(a.to(torch.float32), b.to(torch.float32)).to(torch.int32)


@register_flop_formula(torch.ops.regraft.matmul_integer)  # type: ignore[untyped-decorator, unused-ignore]
def _flops(a: Any, b: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Two for each multiplication with its addition."""
    total = 2 * int(a[-1])
    for size in out_shape:
        total *= int(size)
    return total
