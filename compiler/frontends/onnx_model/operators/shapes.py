"""Operators that give the same numbers another shape or order of dims."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known, Size
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator


@operator("Reshape", since=1)
def reshape_by_attribute(data: Tensor, *, shape: list[int]) -> Tensor:
    return reshaped(data, shape, allow_zero=False)


@operator("Reshape", since=5)
def reshape(data: Tensor, shape: Known, *, allowzero: int = 0) -> Tensor:
    return reshaped(data, shape.sizes(), allow_zero=bool(allowzero))


def reshaped(data: Tensor, sizes: Sequence[Size], *, allow_zero: bool) -> Tensor:
    """`data` in a shape as ONNX states it: -1 is what is left, 0 the size that stands there now (or really 0)."""
    wanted = list(sizes)
    if not allow_zero:
        wanted = [data.shape[dim] if isinstance(size, int) and size == 0 else size for dim, size in enumerate(sizes)]
    return torch.reshape(data, wanted)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """All dims before `axis` as one, and all others as one."""
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    return torch.reshape(x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@operator("Transpose")
def transpose(data: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return torch.permute(data, list(reversed(range(data.dim()))) if perm is None else perm)


@operator("Squeeze", since=1)
def squeeze_by_attribute(data: Tensor, *, axes: list[int] | None = None) -> Tensor:
    return squeezed(data, axes)


@operator("Squeeze", since=13)
def squeeze(data: Tensor, axes: Known | None = None) -> Tensor:
    return squeezed(data, None if axes is None else axes.items())


def squeezed(data: Tensor, axes: Sequence[int] | None) -> Tensor:
    """`data` without the dims `axes`; without every dim that is known to be 1 where there are none."""
    if axes is None:
        axes = [dim for dim, size in enumerate(data.shape) if isinstance(size, int) and size == 1]
    for axis in sorted((axis % data.dim() for axis in axes), reverse=True):
        size = data.shape[axis]
        if isinstance(size, int) and size != 1:
            raise ValueError(f"dim {axis} has size {size}, not 1")
        data = data.squeeze(axis) if isinstance(size, int) else data.select(axis, 0)
    return data


@operator("Unsqueeze", since=1)
def unsqueeze_by_attribute(data: Tensor, *, axes: list[int]) -> Tensor:
    return unsqueezed(data, axes)


@operator("Unsqueeze", since=13)
def unsqueeze(data: Tensor, axes: Known) -> Tensor:
    return unsqueezed(data, axes.items())


def unsqueezed(data: Tensor, axes: Sequence[int]) -> Tensor:
    """`data` with dims of size 1 at the places `axes` of the result."""
    rank = data.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


@operator("Expand", since=8)
def expand(x: Tensor, shape: Known) -> Tensor:
    """Sizes broadcast both ways: a dim keeps its size where `shape` has 1."""
    wanted = shape.sizes()
    present = [*[1] * (len(wanted) - x.dim()), *x.shape]
    wanted = [*[1] * (x.dim() - len(wanted)), *wanted]
    return x.expand([_broadcast(old, new) for old, new in zip(present, wanted, strict=True)])


def _broadcast(present: Size, wanted: Size) -> Size:
    if isinstance(wanted, int) and wanted == 1:
        return present
    if isinstance(present, int) and present != 1 and not isinstance(wanted, int):
        return present  # a symbolic size that broadcasts with it can only be the same
    return wanted


@operator("Tile", since=1)
def tile_along(x: Tensor, tiles: Known, axis: Known) -> Tensor:
    """The first form: one count for one dim."""
    repeats: list[Size] = [1] * x.dim()
    repeats[int(axis.item())] = tiles.sizes()[0]
    return x.repeat(repeats)


@operator("Tile", since=6)
def tile(x: Tensor, repeats: Known) -> Tensor:
    return x.repeat(repeats.sizes())


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR", node: NodeContext) -> Tensor:
    """[batch, channels, height, width]: blocks of channels become blocks of places, depth first or column first."""
    if mode == "CRD":
        return torch.pixel_shuffle(x, blocksize)
    if mode != "DCR":
        raise node.refuse(f"mode {mode!r}", "The modes are DCR and CRD.")
    batch, channels, height, width = x.shape
    kept = channels // blocksize**2
    blocks = x.reshape(batch, blocksize, blocksize, kept, height, width)  # [batch, down, right, kept, height, width]
    placed = blocks.permute(0, 3, 4, 1, 5, 2)  # [batch, kept, height, down, width, right]
    return placed.reshape(batch, kept, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR", node: NodeContext) -> Tensor:
    """The inverse of DepthToSpace."""
    if mode == "CRD":
        return torch.pixel_unshuffle(x, blocksize)
    if mode != "DCR":
        raise node.refuse(f"mode {mode!r}", "The modes are DCR and CRD.")
    batch, channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    blocks = x.reshape(batch, channels, rows, blocksize, columns, blocksize)
    stacked = blocks.permute(0, 3, 5, 1, 2, 4)  # [batch, down, right, channels, rows, columns]
    return stacked.reshape(batch, channels * blocksize**2, rows, columns)
