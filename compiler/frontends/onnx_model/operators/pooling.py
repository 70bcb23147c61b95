"""Pools over windows: the largest number, the mean, an Lp norm; over whole planes, over regions; and max unpooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import as_dtype
from compiler.frontends.onnx_model.known import Known, Size
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.windows import Windows, windows, with_widths

Function = Callable[..., Any]
MAX_POOLS: dict[int, Function] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Function] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
WHOLE_AVERAGE_POOLS: dict[int, Function] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
CONVOLUTIONS: dict[int, Function] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
COMPUTED_AS_FLOAT = (torch.int8, torch.uint8, torch.float16, torch.bfloat16)
"""Dtypes without kernels for every pool here; float32 holds all their numbers."""


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    storage_order: int = 0,
    node: NodeContext,
) -> Tensor | tuple[Tensor, Tensor]:
    """The second output says where in the whole input, flattened, each number stood."""
    place = windows(x, kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    pooled: Any
    values = _computed(x)
    shifted = not _torch_counts(place) or not _fits_torch(place)
    padding, ceil = place.symmetric or [0], place.ceil
    if shifted:
        place = place.exact()
        lowest = float("-inf") if values.is_floating_point() else torch.iinfo(values.dtype).min
        values, padding, ceil = place.padded(values, lowest), [0] * len(place.kernel), False
    with_indices = node.has_output(1)
    pooled = MAX_POOLS[x.dim() - 2](values, place.kernel, place.strides, padding, place.dilations, ceil, with_indices)
    if not with_indices:
        return as_dtype(pooled, x.dtype)
    found, indices = pooled
    if shifted:
        indices = _without_padding(indices, place)
    return as_dtype(found, x.dtype), _within_whole(indices, place.sizes, storage_order)


def _computed(x: Tensor) -> Tensor:
    return as_dtype(x, torch.float32) if x.dtype in COMPUTED_AS_FLOAT else x


def _torch_counts(place: Windows) -> bool:
    """Whether torch rounds up as ONNX does without asking for the size of a dynamic dim."""
    reaches = all(span >= stride for span, stride in zip(place.spans, place.strides, strict=True))
    unpadded = not any(isinstance(one, torch.SymInt) or one for one in (*place.starts, *place.ends))
    return not place.ceil or (reaches and unpadded) or all(isinstance(size, int) for size in place.sizes)


def _fits_torch(place: Windows) -> bool:
    """Whether torch's pools take the padding: the same on both sides, and at most half a window."""
    padding = place.symmetric
    return padding is not None and all(2 * width <= span for width, span in zip(padding, place.spans, strict=True))


def _without_padding(indices: Tensor, place: Windows) -> Tensor:
    """Indices into padded planes as indices into the planes themselves."""
    padded = [sum(one) for one in zip(place.sizes, place.starts, place.ends, strict=True)]
    found = _coordinates(indices, padded)
    starts: list[Any] = place.starts
    coordinates = [one - start for one, start in zip(found, starts, strict=True)]
    return _flat(coordinates, _row_major(place.sizes))


def _within_whole(indices: Tensor, sizes: Sequence[Size], storage_order: int) -> Tensor:
    """Indices into planes as indices into the whole tensor; planes are stored by columns for storage order 1."""
    if storage_order and len(sizes) > 1:
        strides = [math.prod(sizes[:dim]) for dim in range(len(sizes))]
        indices = _flat(_coordinates(indices, sizes), strides)
    batch, channels = indices.shape[:2]
    planes = torch.arange(batch * channels).reshape(batch, channels, *[1] * len(sizes))
    plane: Any = math.prod(sizes)
    return torch.add(indices, planes * plane)


def _coordinates(indices: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
    """Indices into a flattened tensor as one index a dim."""
    found = []
    for size in reversed(sizes[1:]):
        found.append(indices.remainder(size))
        indices = indices.div(size, rounding_mode="floor")
    return [indices, *reversed(found)]


def _row_major(sizes: Sequence[Size]) -> list[Size]:
    return [math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))]


def _flat(coordinates: Sequence[Tensor], strides: Sequence[Any]) -> Tensor:
    parts = [one * stride for one, stride in zip(coordinates, strides, strict=True)]
    return torch.stack(parts).sum(0)


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    """The mean of each window: of what is in the input, or of the padding too, but never of what lies beyond it."""
    place = windows(x, kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    values = _computed(x)
    dense = max(place.dilations) == 1
    if dense and _torch_counts(place) and _fits_torch(place):
        pool = AVERAGE_POOLS[x.dim() - 2]
        pooled = pool(values, place.kernel, place.strides, place.symmetric, place.ceil, bool(count_include_pad))
        return as_dtype(pooled, x.dtype)
    exact = place.exact()
    means = _window_means(exact.padded(values, 0.0), place)
    full = count_include_pad and not place.ceil
    unpadded = exact.symmetric is not None and not any(exact.symmetric)
    if full or unpadded:
        return as_dtype(means, x.dtype)
    counted = torch.ones([1, 1, *place.sizes], dtype=values.dtype)
    if count_include_pad:
        counted = place.padded(counted, 1.0)
        beyond = [after - before for after, before in zip(exact.ends, place.ends, strict=True)]
        counted = with_widths(counted, [0] * len(beyond), beyond, 0.0)
    else:
        counted = exact.padded(counted, 0.0)
    return as_dtype(means / _window_means(counted, place), x.dtype)


def _window_means(x: Tensor, place: Windows) -> Tensor:
    """The means of all windows over `x`, which has its padding already."""
    dims = len(place.kernel)
    if max(place.dilations) == 1:
        return AVERAGE_POOLS[dims](x, place.kernel, place.strides)  # type: ignore[no-any-return]
    share = torch.full([1, 1, *place.kernel], 1 / math.prod(place.kernel), dtype=x.dtype)
    planes = x.flatten(0, 1).unsqueeze(1)
    means = CONVOLUTIONS[dims](planes, share, None, place.strides, 0, place.dilations)
    return means.squeeze(1).unflatten(0, x.shape[:2])  # type: ignore[no-any-return]


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    p: float = 2,
    auto_pad: str = "NOTSET",
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
) -> Tensor:
    place = windows(x, kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    values = _computed(x)
    powers = values.abs() if p == 1 else values.abs().pow(p)
    sums = _window_means(place.exact().padded(powers, 0.0), place) * math.prod(place.kernel)
    return as_dtype(sums if p == 1 else sums.pow(1 / p), x.dtype)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    dims = x.dim() - 2
    if dims in WHOLE_AVERAGE_POOLS:
        return WHOLE_AVERAGE_POOLS[dims](x, 1)  # type: ignore[no-any-return]
    return x.mean(_spatial(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(_spatial(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, p, _spatial(x), keepdim=True)
    return norm


def _spatial(x: Tensor) -> list[int]:
    if x.dim() < 3:
        raise ValueError(f"a tensor of {x.dim()} dims has no spatial ones")
    return list(range(2, x.dim()))


@operator("MaxUnpool", since=9)
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Known | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Numbers go back to where max pooling found them, and zeros everywhere else.

    Indices count in the shape that follows from the attributes; `output_shape` adds zeros at the end of every dim.
    """
    dims = x.dim() - 2
    steps, widths = strides or [1] * dims, pads or [0] * 2 * dims
    inferred = [*x.shape[:2]]
    for dim, kernel in enumerate(kernel_shape):
        inferred.append((x.shape[dim + 2] - 1) * steps[dim] - widths[dim] - widths[dims + dim] + kernel)
    flat = torch.zeros([math.prod(inferred)], dtype=x.dtype)
    spread = flat.scatter(0, indices.flatten(), x.flatten()).reshape(inferred)
    if output_shape is None:
        return spread
    missing = [goal - size for goal, size in zip(output_shape.sizes(), inferred, strict=True)]
    return with_widths(spread, [0] * len(missing), missing, 0.0)


@operator("MaxRoiPool")
def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: list[int], spatial_scale: float = 1.0) -> Tensor:
    """x [batch, channels, height, width], rois [count, 5] of batch index, left, top, right, bottom.

    Gives [count, channels, *pooled_shape]; a part that holds no place gives 0.
    """
    images = x.index_select(0, rois[:, 0].to(torch.int64))
    corners = (rois[:, 1:] * spatial_scale + 0.5).floor()
    rows = _parts(corners[:, 1], corners[:, 3], pooled_shape[0], x.shape[2])
    columns = _parts(corners[:, 0], corners[:, 2], pooled_shape[1], x.shape[3])
    lowest = torch.finfo(x.dtype).min
    by_row = torch.where(rows[:, None, :, :, None], images.unsqueeze(2), lowest).amax(3)
    pooled = torch.where(columns[:, None, None], by_row.unsqueeze(3), lowest).amax(4)
    held = rows.any(2)[:, None, :, None] & columns.any(2)[:, None, None]
    return torch.where(held, pooled, 0.0)


def _parts(first: Tensor, last: Tensor, count: int, size: int) -> Tensor:
    """Which of `size` places lie in each of `count` parts of the span from `first` to `last`.

    Gives [regions, count, size].
    """
    width = (last - first + 1).clamp_min(1) / count
    steps = torch.arange(count, dtype=first.dtype)
    begin = (steps * width[:, None]).floor() + first[:, None]
    end = ((steps + 1) * width[:, None]).ceil() + first[:, None]
    places = torch.arange(size, dtype=first.dtype)
    return (places >= begin[..., None]) & (places < end[..., None])
