"""Resize and Upsample: aten's upsampling where it means the same, otherwise weighted sums along one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from compiler.frontends.onnx_model.known import Known, Size
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.resampling import (
    Axis,
    is_atens_nearest,
    nearest_indices,
    neighbors,
    positions,
    scaled_size,
)

MODES = ("nearest", "linear", "cubic")
ATEN_CUBIC = -0.75
BEFORE_11 = "asymmetric", "floor"


@operator("Upsample")
def upsample_by_attributes(
    x: Tensor, *, mode: str = "nearest", height_scale: float = 1.0, width_scale: float = 1.0,
    scales: list[float] | None = None,
) -> Tensor:  # fmt: skip
    stated = scales or [1.0] * (x.dim() - 2) + [height_scale, width_scale]
    return _resized(x, _axes_scaled(x, range(x.dim()), stated), _mode(mode), *BEFORE_11)


@operator("Upsample", since=9)
@operator("Resize", since=10)
def resize_by_scales(x: Tensor, scales: Known, *, mode: str = "nearest") -> Tensor:
    return _resized(x, _axes_scaled(x, range(x.dim()), scales.items()), _mode(mode), *BEFORE_11)


@operator("Resize", since=11)
def resize(
    x: Tensor,
    roi: Known | None = None,
    scales: Known | None = None,
    sizes: Known | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = ATEN_CUBIC,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    node: NodeContext,
) -> Tensor:
    dims = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    regions = _regions(roi, len(dims)) if crop else [(0.0, 1.0)] * len(dims)
    if scales is not None and scales.size:
        resized = _axes_scaled(x, dims, scales.items(), regions)
    elif sizes is not None:
        resized = _axes_of_sizes(node, x, dims, sizes.sizes(), keep_aspect_ratio_policy, regions)
    else:
        raise node.refuse("it has neither scales nor sizes", "It takes one of the two.")
    return _resized(
        x, resized, mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(antialias),
        bool(exclude_outside), extrapolation_value if crop else None,
    )  # fmt: skip


def _mode(name: str) -> str:
    """The mode by its present name: Upsample began with bilinear."""
    return "linear" if name == "bilinear" else name


def _regions(roi: Known | None, count: int) -> list[tuple[float, float]]:
    """Starts and ends by axis, in parts of its size."""
    if roi is None or roi.size != 2 * count:
        raise ValueError(f"tf_crop_and_resize needs a region of {2 * count} numbers")
    items = roi.items()
    return list(zip(items[:count], items[count:], strict=True))


def _axes_scaled(
    x: Tensor, dims: Sequence[int], scales: Sequence[float], regions: Sequence[tuple[float, float]] | None = None
) -> list[Axis]:
    """Axes of sizes `before * scale`, rounded down."""
    if len(scales) != len(dims):
        raise ValueError(f"{len(scales)} scales for {len(dims)} axes")
    regions = regions or [(0.0, 1.0)] * len(dims)
    return [
        Axis(dim, x.shape[dim], scaled_size(x.shape[dim], scale * (region[1] - region[0])), float(scale), region)
        for dim, scale, region in zip(dims, scales, regions, strict=True)
    ]


def _axes_of_sizes(
    node: NodeContext, x: Tensor, dims: Sequence[int], sizes: Sequence[Size], policy: str,
    regions: Sequence[tuple[float, float]],
) -> list[Axis]:  # fmt: skip
    """Axes of stated sizes, adjusted to keep the ratio of the sizes where the policy says so."""
    if len(sizes) != len(dims):
        raise ValueError(f"{len(sizes)} sizes for {len(dims)} axes")
    if policy == "stretch":
        return [Axis(dim, x.shape[dim], size, None, one) for dim, size, one in zip(dims, sizes, regions, strict=True)]
    if policy not in ("not_larger", "not_smaller"):
        raise ValueError(f"keep_aspect_ratio_policy {policy!r} is not known")
    before = [x.shape[dim] for dim in dims]
    if not all(isinstance(size, int) for size in (*before, *sizes)):
        hint = "State the sizes of its input, or resize with policy stretch."
        raise node.refuse(f"policy {policy} needs sizes that are known", hint)
    ratios = [wanted / size for wanted, size in zip(sizes, before, strict=True)]
    scale = float(min(ratios) if policy == "not_larger" else max(ratios))
    return [
        Axis(dim, size, int(scale * size + 0.5), scale, region)
        for dim, size, region in zip(dims, before, regions, strict=True)
    ]


def _resized(
    x: Tensor, axes: Sequence[Axis], mode: str, transformation: str, nearest_mode: str, coefficient: float = ATEN_CUBIC,
    antialias: bool = False, exclude_outside: bool = False, outside: float | None = None,
) -> Tensor:  # fmt: skip
    """`outside` is the value beyond the input, or None where its edges go on."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
    changed = [axis for axis in axes if not axis.is_unchanged]
    if not changed:
        return x.clone()
    if outside is None and not antialias and not exclude_outside:
        result = _by_aten(x, changed, mode, transformation, nearest_mode, coefficient)
        if result is not None:
            return result
    value = x
    for axis in changed:
        places = positions(axis, transformation)
        if mode == "nearest":
            indices = nearest_indices(places, axis.before, nearest_mode)
            value = value.index_select(axis.dim, _tensor(indices, torch.int64))
        else:
            indices, weights = neighbors(axis, places, mode, coefficient, antialias, exclude_outside)
            value = _weighted(value, axis.dim, _tensor(indices, torch.int64), weights)
        if outside is not None:
            beyond = _along(value, axis.dim, _tensor((places < 0) | (places > axis.before - 1), torch.bool))
            value = value.masked_fill(beyond, outside)
    return value.to(x.dtype)


def _tensor(array: Any, dtype: torch.dtype) -> Tensor:
    return array.to(dtype) if isinstance(array, Tensor) else torch.tensor(array.tolist(), dtype=dtype)


def _along(x: Tensor, dim: int, vector: Tensor) -> Tensor:
    """`vector` as a tensor that broadcasts along dim `dim` of x."""
    return vector.view([-1 if index == dim else 1 for index in range(x.dim())])


def _weighted(x: Tensor, dim: int, indices: Tensor, weights: Any) -> Tensor:
    """Sums over the neighbors [out, count] along one dim, in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    count = indices.shape[1]
    picked = x.to(wide).index_select(dim, indices.flatten())
    picked = torch.unflatten(picked, dim, (-1, count))
    shape = [-1 if index == dim else count if index == dim + 1 else 1 for index in range(picked.dim())]
    return (picked * _tensor(weights, wide).view(shape)).sum(dim + 1)


def _by_aten(
    x: Tensor, axes: Sequence[Axis], mode: str, transformation: str, nearest_mode: str, coefficient: float
) -> Tensor | None:
    """The same by aten's operator for the rank, or None where there is none that is exactly the same."""
    spatial = x.dim() - 2
    if spatial not in (1, 2, 3) or any(axis.dim < 2 for axis in axes) or not x.is_floating_point():
        return None
    stated_scales = [axis for axis in axes if axis.is_known and axis.scale is not None]
    if any(axis.after != scaled_size(axis.before, axis.scale or 1.0) for axis in stated_scales):
        return None
    by_dim = {axis.dim: axis for axis in axes}
    sizes = [by_dim[dim].after if dim in by_dim else x.shape[dim] for dim in range(2, x.dim())]
    stated = [by_dim[dim].scale if dim in by_dim else 1.0 for dim in range(2, x.dim())]
    scales = stated if None not in stated else [None] * spatial
    aten: Any = torch.ops.aten
    result: Tensor
    if mode == "nearest":
        if not all(is_atens_nearest(axis, transformation, nearest_mode) for axis in axes):
            return None
        nearest: Any = (aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)[spatial - 1]
        result = nearest(x, sizes, *scales)
        return result
    corners = transformation == "align_corners"
    if not all(_is_atens_position(axis, transformation) for axis in axes):
        return None
    if mode == "cubic" and (spatial != 2 or coefficient != ATEN_CUBIC):
        return None
    linear = (aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d)[spatial - 1]
    result = (aten.upsample_bicubic2d if mode == "cubic" else linear)(x, sizes, corners, *scales)
    return result


def _is_atens_position(axis: Axis, transformation: str) -> bool:
    if transformation == "align_corners":
        return not axis.is_known or bool(axis.width == axis.after)
    single = bool(statically_known_true(axis.after == 1))
    return transformation == "half_pixel" or (transformation == "pytorch_half_pixel" and not single)
