"""Convolutions: ordinary, transposed, and deformable ones, over 1, 2 and 3 spatial dims."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.known import Size
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.windows import larger, split_padding, windows, with_widths

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
) -> Tensor:
    """x [batch, channels, *spatial], weight [out_channels, channels / group, *kernel]."""
    place = windows(x, weight.shape[2:], auto_pad, pads, strides, dilations)
    padding = place.symmetric
    if padding is None:
        x, padding = place.padded(x, 0.0), [0] * len(place.kernel)
    return CONVOLUTIONS[x.dim() - 2](x, weight, bias, place.strides, padding, place.dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    pads: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
) -> Tensor:
    """x [batch, channels, *spatial], weight [channels, out_channels / group, *kernel].

    `pads` cut places off the output. Where the sizes of the output are given, the cut follows from them.
    """
    place = windows(x, weight.shape[2:], "VALID" if auto_pad != "NOTSET" else auto_pad, pads, strides, dilations)
    dims = len(place.kernel)
    more = list(output_padding or [0] * dims)
    whole = [
        (size - 1) * stride + span for size, stride, span in zip(place.sizes, place.strides, place.spans, strict=True)
    ]
    wanted: list[Size] | None = None
    if output_shape is not None:
        if len(output_shape) != dims:
            raise ValueError(f"output_shape has {len(output_shape)} numbers for {dims} spatial dims")
        wanted = list(output_shape)
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(place.sizes, place.strides, strict=True)]
    if wanted is None:
        cuts = place.starts, place.ends
    else:
        surplus = [larger(one + extra - goal, 0) for one, extra, goal in zip(whole, more, wanted, strict=True)]
        cuts = split_padding(surplus, auto_pad)
    goals = wanted or [one + extra - start - end for one, extra, start, end in zip(whole, more, *cuts, strict=True)]
    return _transposed(x, weight, bias, place.strides, place.dilations, group, cuts[0], whole, goals)


def _transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: list[int],
    dilations: list[int],
    group: int,
    starts: Sequence[Size],
    whole: Sequence[Size],
    goals: Sequence[Size],
) -> Tensor:
    """The `goals` places of the output from `starts` on; places beyond its `whole` hold the bias alone."""
    function = TRANSPOSED[len(strides)]
    missing = [goal - one + 2 * start for goal, one, start in zip(goals, whole, starts, strict=True)]
    limits = [max(stride, dilation) for stride, dilation in zip(strides, dilations, strict=True)]
    if all(isinstance(one, int) for one in (*starts, *missing)):
        kept = [one if 0 <= one < limit else 0 for one, limit in zip(missing, limits, strict=True)]
        rest = [one - extra for one, extra in zip(missing, kept, strict=True)]
        if all(one <= 0 for one in rest):
            y = function(x, weight, bias, strides, starts, kept, group, dilations)
            return with_widths(y, [0] * len(rest), rest, 0.0)
    y = function(x, weight, None, strides, 0, 0, group, dilations)
    ends = [goal + start - one for goal, start, one in zip(goals, starts, whole, strict=True)]
    y = with_widths(y, [-start for start in starts], ends, 0.0)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(strides))


@operator("DeformConv", since=19)
def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    offset_group: int = 1,
) -> Tensor:
    """Every place of a window is moved by an offset and read by linear interpolation; outside are zeros.

    offset [batch, offset_group * places * dims, *out], mask [batch, offset_group * places, *out].
    """
    place = windows(x, weight.shape[2:], "NOTSET", pads, strides, dilations)
    dims, out, batch = len(place.kernel), list(offset.shape[2:]), x.shape[0]
    moved = offset.reshape([batch, offset_group, -1, dims, *out])
    taps = list(itertools.product(*map(range, place.kernel)))
    positions = []
    for dim in range(dims):
        shape = [1] * dims
        shape[dim] = -1
        base = torch.arange(out[dim], dtype=x.dtype).reshape(shape) * place.strides[dim]
        steps = torch.tensor([tap[dim] * place.dilations[dim] - place.starts[dim] for tap in taps], dtype=x.dtype)
        positions.append(moved[:, :, :, dim] + steps.reshape(-1, *[1] * dims) + base)
    sampled = _interpolated(x.reshape([batch, offset_group, -1, *x.shape[2:]]), torch.stack(positions, 3))
    if mask is not None:
        sampled = sampled * mask.reshape([batch, offset_group, 1, -1, *out])
    columns = sampled.reshape([batch, group, -1, math.prod(out)])
    y = torch.matmul(weight.reshape([group, weight.shape[0] // group, -1]), columns).reshape([batch, -1, *out])
    return y if bias is None else y + bias.reshape(-1, *[1] * dims)


def _interpolated(x: Tensor, positions: Tensor) -> Tensor:
    """x [batch, groups, channels, *spatial] at positions [batch, groups, places, dims, *out], linear in every dim.

    Gives [batch, groups, channels, places, *out].
    """
    sizes = list(x.shape[3:])
    flat, out = x.flatten(3), list(positions.shape[4:])
    low = positions.floor()
    parts = []
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        share, index = torch.ones_like(low[:, :, :, 0]), torch.zeros_like(low[:, :, :, 0], dtype=torch.int64)
        for dim, (size, step) in enumerate(zip(sizes, corner, strict=True)):
            at = low[:, :, :, dim] + step
            near = 1 - (positions[:, :, :, dim] - at).abs()
            share = share * torch.where((at >= 0) & (at <= size - 1), near, 0.0)
            index = index * size + at.clamp(0, size - 1).to(torch.int64)
        spread = index.flatten(2).unsqueeze(2).expand(-1, -1, flat.shape[2], -1)
        values = flat.gather(3, spread).reshape([*flat.shape[:3], -1, *out])
        parts.append(values * share.unsqueeze(2))
    return torch.stack(parts).sum(0)
