"""regraft::conv_integer(x, weight, x_zero_point, weight_zero_point, stride, padding, dilation, groups) -> int32.

    x int8 or uint8 [batch, channels, *spatial], weight int8 or uint8 [out_channels, channels / groups, *kernel]
    x_zero_point [], weight_zero_point [] or [out_channels], or none   ->   int32 [batch, out_channels, *spatial]

    y = conv(x - x_zero_point, weight - weight_zero_point)          exact in integers

`padding` has the sizes before every spatial dim, then those after, and stands for the value x_zero_point.
Source: ONNX ConvInteger, opset 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? x_zero_point, Tensor? weight_zero_point, "
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, int groups) -> Tensor"
)


def conv_integer_reference(
    x: Tensor, weight: Tensor, x_zero_point: Tensor | None, weight_zero_point: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """The definition, through a float64 convolution: sums below 2**53 are exact there."""
    inputs, kernel = x.double(), weight.double()
    if x_zero_point is not None:
        inputs = inputs - x_zero_point.double()
    if weight_zero_point is not None:
        kernel = kernel - weight_zero_point.double().reshape(-1, *[1] * (weight.dim() - 1))
    return _convolved(inputs, kernel, stride, padding, dilation, groups).to(torch.int32)


def _convolved(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    dims = weight.dim() - 2
    sizes = [size for dim in reversed(range(dims)) for size in (padding[dim], padding[dims + dim])]
    padded = functional.pad(x, sizes)
    return torch.convolution(padded, weight, None, list(stride), [0] * dims, list(dilation), False, [0] * dims, groups)


@torch.library.custom_op("regraft::conv_integer", mutates_args=(), schema=SCHEMA)
def conv_integer(
    x: Tensor, weight: Tensor, x_zero_point: Tensor | None, weight_zero_point: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """The convolution as the module's docstring defines it."""
    return conv_integer_reference(
        x, weight, x_zero_point, weight_zero_point, stride, padding, dilation, groups
    ).contiguous()


@conv_integer.register_fake
def _(
    x: Tensor, weight: Tensor, x_zero_point: Tensor | None, weight_zero_point: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    for codes in (x, weight):
        if codes.dtype not in (torch.int8, torch.uint8):
            raise ValueError(f"a convolution of {codes.dtype}; int8 or uint8 is needed")
    product = _convolved(x.to(torch.float32), weight.to(torch.float32), stride, padding, dilation, groups)
    return product.to(torch.int32)


@register_flop_formula(torch.ops.regraft.conv_integer)  # type: ignore[untyped-decorator, unused-ignore]
def _flops(x: Any, weight: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Two for each multiplication with its addition: every output reads one kernel."""
    total = 2
    for size in (*out_shape, *weight[1:]):
        total *= int(size)
    return total
