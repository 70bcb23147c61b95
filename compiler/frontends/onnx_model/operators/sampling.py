"""Operators that pick or place pixels: GridSample, AffineGrid, CenterCropPad, Col2Im."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.windows import larger

MODES = {"bilinear": 0, "linear": 0, "nearest": 1, "bicubic": 2, "cubic": 2}
PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}
CUBIC = 2
Count = Any
"""A size: an int, or a SymInt, which torch's stubs leave out."""


@operator("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros",
    node: NodeContext,
) -> Tensor:  # fmt: skip
    if mode not in MODES or padding_mode not in PADDINGS:
        raise node.refuse(f"mode {mode!r} with padding {padding_mode!r} is not known", "See ONNX's list of modes.")
    if x.dim() not in (4, 5) or (x.dim() == 5 and MODES[mode] == CUBIC):
        raise node.refuse(f"mode {mode!r} for rank {x.dim()}", "Images are read, and volumes that are not cubic.")
    wide = torch.promote_types(x.dtype, torch.float32)
    settings = MODES[mode], PADDINGS[padding_mode], bool(align_corners)
    return torch.grid_sampler(x.to(wide), grid.to(wide), *settings).to(x.dtype)


@operator("AffineGrid")
def affine_grid(theta: Tensor, size: Known, *, align_corners: int = 0) -> Tensor:
    return torch.affine_grid_generator(theta, size.sizes(), bool(align_corners))


@operator("CenterCropPad")
def center_crop_pad(x: Tensor, shape: Known, *, axes: list[int] | None = None) -> Tensor:
    for axis, wanted in zip(range(x.dim()) if axes is None else axes, shape.sizes(), strict=True):
        x = _centered(x, axis % x.dim(), wanted)
    return x


def _centered(x: Tensor, dim: int, wanted: Count) -> Tensor:
    """The middle of x along a dim, or x in the middle of zeros."""
    held = x.shape[dim]
    if not isinstance(held, int) or not isinstance(wanted, int):
        return _centered_symbolically(x, dim, wanted)
    if wanted <= held:
        return x.narrow(dim, (held - wanted) // 2, wanted)
    before = (wanted - held) // 2
    widths = [0, 0] * (x.dim() - 1 - dim) + [before, wanted - held - before]
    return torch.constant_pad_nd(x, widths, 0)


def _centered_symbolically(x: Tensor, dim: int, wanted: Count) -> Tensor:
    """The same where it is not known which of the two sizes is larger: a lookup, with zeros beyond the ends."""
    held = x.shape[dim]
    crop, pad = larger(held - wanted, 0) // 2, larger(wanted - held, 0) // 2
    places = torch.arange(wanted) + (crop - pad)
    picked = x.index_select(dim, places.clamp(0, held - 1))
    outside = (places < 0) | (places >= held)
    return picked.masked_fill(outside.view([-1 if one == dim else 1 for one in range(x.dim())]), 0)


@operator("Col2Im")
def col2im(
    columns: Tensor, image_shape: Known, block_shape: Known, *, dilations: list[int] | None = None,
    pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """Overlapping blocks [batch, channels * block, places] added up to images."""
    sizes, block = [int(one) for one in image_shape.items()], [int(one) for one in block_shape.items()]
    rank = len(sizes)
    dilations, strides, pads = dilations or [1] * rank, strides or [1] * rank, pads or [0] * 2 * rank
    starts, ends = pads[:rank], pads[rank:]
    if rank == 2 and starts == ends:
        return torch.ops.aten.col2im(columns, sizes, block, dilations, starts, strides)  # type: ignore[no-any-return]
    padded = [size + start + end for size, start, end in zip(sizes, starts, ends, strict=True)]
    places = torch.tensor(_places(padded, block, dilations, strides).tolist())
    rows = torch.unflatten(columns, 1, (-1, math.prod(block))).flatten(2)  # [batch, channels, block * places]
    image = rows.new_zeros(rows.shape[0], rows.shape[1], math.prod(padded))
    image = torch.unflatten(image.scatter_add(2, places.expand_as(rows), rows), 2, padded)
    for dim, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        image = image.narrow(dim + 2, start, size)
    return image


def _places(
    padded: Sequence[int], block: Sequence[int], dilations: Sequence[int], strides: Sequence[int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Where each number of each block lands in the flat padded image, block offsets first."""
    offsets, origins = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for size, length, dilation, stride in zip(padded, block, dilations, strides, strict=True):
        reach = np.arange(length) * dilation
        steps = np.arange(0, size - dilation * (length - 1), stride)
        offsets = (offsets[:, None] * size + reach).reshape(-1)
        origins = (origins[:, None] * size + steps).reshape(-1)
    return (offsets[:, None] + origins).reshape(-1)
