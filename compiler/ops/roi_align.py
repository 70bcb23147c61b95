"""regraft::roi_align: pooling of regions of interest with bilinear samples, as ONNX's RoiAlign.

    x [batch, channels, height, width]   rois [regions, 4] as x1, y1, x2, y2   batch_indices [regions]
    ->  [regions, channels, output_height, output_width]

Each region is scaled by `spatial_scale` and cut into bins; a bin takes `sampling_ratio` x `sampling_ratio` samples, or
as many as it has pixels where that is 0, and gives their mean, or with `use_maximum` the largest weighted corner among
them. With `half_pixel` a pixel's center is at 0.5; without, regions are at least one pixel large.

Source: He et al. 2017, arXiv:1703.06870, section 3; ONNX RoiAlign, opset 16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMA = """(
    Tensor x, Tensor rois, Tensor batch_indices, int output_height, int output_width, int sampling_ratio,
    float spatial_scale, bool half_pixel, bool use_maximum
) -> Tensor"""


def roi_align_reference(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    output_height: int,
    output_width: int,
    sampling_ratio: int,
    spatial_scale: float,
    half_pixel: bool,
    use_maximum: bool,
) -> Tensor:
    """The definition. Differentiable."""
    corners = rois * spatial_scale - (0.5 if half_pixel else 0.0)
    regions = x[batch_indices.long()]  # [regions, channels, height, width]
    rows, row_weights, row_counts = _samples(
        corners[:, 1], corners[:, 3], output_height, x.shape[2], sampling_ratio, half_pixel
    )
    columns, column_weights, column_counts = _samples(
        corners[:, 0], corners[:, 2], output_width, x.shape[3], sampling_ratio, half_pixel
    )
    if not use_maximum:
        down = _spread(rows, row_weights, x.shape[2]).sum((2, 3))  # [regions, output_height, height]
        across = _spread(columns, column_weights, x.shape[3]).sum((2, 3))  # [regions, output_width, width]
        total = torch.einsum("rph,rchw,rqw->rcpq", down, regions, across)
        return total / (row_counts * column_counts).clamp(min=1).view(-1, 1, 1, 1)
    index = torch.arange(len(rois)).view(-1, 1, 1)
    picked = regions.permute(0, 2, 3, 1)[index, rows.flatten(1).unsqueeze(2), columns.flatten(1).unsqueeze(1)]
    weights = row_weights.flatten(1).unsqueeze(2) * column_weights.flatten(1).unsqueeze(1)
    present = _present(rows, row_counts).flatten(1).unsqueeze(2) & _present(columns, column_counts).flatten(
        1
    ).unsqueeze(1)
    corner = (picked * weights.unsqueeze(-1)).masked_fill(~present.unsqueeze(-1), -torch.inf)
    bins = torch.unflatten(torch.unflatten(corner, 2, (output_width, -1)), 1, (output_height, -1))
    return bins.amax((2, 4)).permute(0, 3, 1, 2)


def _samples(
    start: Tensor, end: Tensor, bins: int, size: int, sampling_ratio: int, half_pixel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices and weights [regions, bins, samples, 2] of the two pixels of each sample; and samples by region."""
    extent = end - start if half_pixel else (end - start).clamp(min=1.0)
    if sampling_ratio > 0:
        counts, most = torch.full_like(start, sampling_ratio), sampling_ratio
    else:
        counts = torch.ceil(extent.detach() / bins)
        most = max(1, int(counts.max())) if counts.numel() else 1
    within = (torch.arange(most, dtype=start.dtype) + 0.5) / counts.clamp(min=1).unsqueeze(1)  # [regions, samples]
    places = torch.arange(bins, dtype=start.dtype).view(-1, 1) + within.unsqueeze(1)
    places = start.view(-1, 1, 1) + places * (extent / bins).view(-1, 1, 1)  # [regions, bins, samples]
    outside = (places < -1) | (places > size) | (torch.arange(most) >= counts.view(-1, 1, 1))
    places = places.clamp(0, size - 1)
    low = places.detach().floor()
    upper = places - low
    weights = torch.stack([1 - upper, upper], -1).masked_fill(outside.unsqueeze(-1), 0.0)
    indices = torch.stack([low, (low + 1).clamp(max=size - 1)], -1).long()
    return indices, weights, counts


def _spread(indices: Tensor, weights: Tensor, size: int) -> Tensor:
    """Weights [..., 2] as rows [..., 2, size] with each weight at its index."""
    return torch.nn.functional.one_hot(indices, size).to(weights.dtype) * weights.unsqueeze(-1)


def _present(indices: Tensor, counts: Tensor) -> Tensor:
    """[regions, bins, samples, 2]: whether the region has that sample."""
    return (torch.arange(indices.shape[2]) < counts.view(-1, 1, 1)).unsqueeze(-1).expand_as(indices)


@torch.library.custom_op("regraft::roi_align", mutates_args=(), schema=SCHEMA)
def roi_align(*inputs: Any) -> Tensor:
    """Region pooling as the module's docstring defines it."""
    return roi_align_reference(*inputs).contiguous()


@roi_align.register_fake
def _(x: Tensor, rois: Tensor, batch_indices: Tensor, output_height: int, output_width: int, *rest: Any) -> Tensor:
    return x.new_empty(rois.shape[0], x.shape[1], output_height, output_width)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiates the definition with respect to x and rois."""
    x, rois, batch_indices = ctx.saved_tensors
    with torch.enable_grad():
        leaves = x.detach().requires_grad_(), rois.detach().requires_grad_()
        output = roi_align_reference(*leaves, batch_indices, *ctx.settings)
    return (*torch.autograd.grad(output, leaves, gradient), None, *[None] * len(ctx.settings))


roi_align.register_autograd(_backward, setup_context=_save_inputs)
