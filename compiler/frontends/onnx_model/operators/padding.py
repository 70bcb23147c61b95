"""Pad, in its four modes: constants, the edge, a mirror image, the other end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import as_dtype, widened
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator

TORCH_MODES = {"reflect": "reflect", "edge": "replicate"}


@operator("Pad", since=1)
def pad_by_paddings(
    data: Tensor, *, paddings: list[int], mode: str = "constant", value: float = 0.0, node: NodeContext
) -> Tensor:
    return _padded(data, paddings, range(data.dim()), mode, value, node)


@operator("Pad", since=2)
def pad_by_attributes(
    data: Tensor, *, pads: list[int], mode: str = "constant", value: float = 0.0, node: NodeContext
) -> Tensor:
    return _padded(data, pads, range(data.dim()), mode, value, node)


@operator("Pad", since=11)
def pad(
    data: Tensor,
    pads: Known,
    constant_value: Known | None = None,
    axes: Known | None = None,
    *,
    mode: str = "constant",
    node: NodeContext,
) -> Tensor:
    listed = range(data.dim()) if axes is None else [int(axis) % data.dim() for axis in axes.items()]
    return _padded(data, pads.sizes(), listed, mode, 0 if constant_value is None else constant_value.item(), node)


def _padded(
    data: Tensor, pads: Sequence[Any], axes: Sequence[int], mode: str, fill: float, node: NodeContext
) -> Tensor:
    """`pads` are the widths before every one of `axes`, and then those after them; negative widths cut away."""
    if len(pads) != 2 * len(axes):
        raise ValueError(f"there are {len(pads)} widths for {len(axes)} dims")
    widths = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    if mode == "constant":
        flat = [width for axis in reversed(range(data.dim())) for width in widths.get(axis, (0, 0))]
        return as_dtype(F.pad(widened(data), flat, value=fill), data.dtype)
    if mode not in ("reflect", "edge", "wrap"):
        raise node.refuse(f"mode {mode!r}", "The modes are constant, reflect, edge and wrap.")
    for axis, (before, after) in widths.items():
        if isinstance(before, int) and isinstance(after, int) and min(before, after) < 0:
            data = torch.ops.aten.slice.Tensor(data, axis, max(-before, 0), -after if after < 0 else None)
            widths[axis] = max(before, 0), max(after, 0)
    changed = {axis: width for axis, width in widths.items() if width != (0, 0)}
    if not changed:
        return data
    if _has_torch_kernel(data, changed, mode):
        flat = [width for axis in reversed(range(min(changed), data.dim())) for width in widths.get(axis, (0, 0))]
        return F.pad(data, flat, mode=TORCH_MODES[mode])
    for axis, (before, after) in changed.items():
        places = torch.arange(data.shape[axis] + before + after) - before
        data = data.index_select(axis, _place_of(places, data.shape[axis], mode))
    return data


def _has_torch_kernel(data: Tensor, widths: dict[int, tuple[Any, Any]], mode: str) -> bool:
    """Whether torch pads so: up to three last dims, of tensors with one or two dims before them."""
    first, rank = min(widths), data.dim()
    if mode not in TORCH_MODES or not data.is_floating_point() or data.dtype == torch.float16:
        return False
    if not 1 <= first <= 2 or not 1 <= rank - first <= 3:
        return False
    fits = (
        all(isinstance(one, int) for one in (size, *width)) and (mode == "edge" or max(width) < size)
        for axis, width in widths.items()
        for size in [data.shape[axis]]
    )
    return all(fits)


def _place_of(places: Tensor, size: Any, mode: str) -> Tensor:
    """Where in a dim of `size` the number for a place outside of it stands."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    if isinstance(size, int) and size == 1:
        return torch.zeros_like(places)
    last = size - 1
    mirrored: Tensor = last - (last - places.remainder(2 * last)).abs()
    return mirrored
