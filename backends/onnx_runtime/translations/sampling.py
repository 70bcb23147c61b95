"""Grids, columns and regions of images: each is one ONNX operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates

MODES = ("linear", "nearest", "cubic")
PADDINGS = ("zeros", "border", "reflection")


@translates("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(
    w: GraphWriter, node: fx.Node, x: fx.Node, grid: fx.Node, mode: int, padding: int, corners: bool
) -> ir.Value:
    attributes: dict[str, Any] = {"mode": MODES[mode], "padding_mode": PADDINGS[padding], "align_corners": int(corners)}
    return w.emit("GridSample", w.value(x), w.value(grid), **attributes)


@translates("aten.affine_grid_generator.default")
def affine_grid(w: GraphWriter, node: fx.Node, theta: fx.Node, size: Sequence[Any], corners: bool) -> ir.Value:
    return w.emit("AffineGrid", w.value(theta), w.sizes(list(size)), align_corners=int(corners))


@translates("aten.col2im.default")
def col2im(
    w: GraphWriter, node: fx.Node, x: fx.Node, size: Any, block: Any, dilation: Any, padding: Any, stride: Any
) -> ir.Value:
    shapes = w.sizes(list(size)), w.constant(list(block), np.int64)
    attributes: dict[str, Any] = {"dilations": list(dilation), "pads": [*padding, *padding], "strides": list(stride)}
    return w.emit("Col2Im", w.value(x), *shapes, **attributes)


@translates("regraft.roi_align.default")
def roi_align(
    w: GraphWriter, node: fx.Node, x: fx.Node, rois: fx.Node, batch_indices: fx.Node, height: int, width: int,
    sampling_ratio: int, spatial_scale: float, half_pixel: bool, use_maximum: bool,
) -> ir.Value:  # fmt: skip
    return w.emit(
        "RoiAlign", w.value(x), w.value(rois), w.tensor(batch_indices, torch.int64), output_height=height,
        output_width=width, sampling_ratio=sampling_ratio, spatial_scale=float(spatial_scale),
        mode="max" if use_maximum else "avg",
        coordinate_transformation_mode="half_pixel" if half_pixel else "output_half_pixel",
    )  # fmt: skip


@translates("regraft.non_max_suppression.default")
def non_max_suppression(
    w: GraphWriter, node: fx.Node, boxes: fx.Node, scores: fx.Node, most: fx.Node | None, iou: fx.Node | None,
    threshold: fx.Node | None, center_point: bool,
) -> ir.Value:  # fmt: skip
    limits = (None if one is None else w.value(one) for one in (most, iou, threshold))
    return w.emit("NonMaxSuppression", w.value(boxes), w.value(scores), *limits, center_point_box=int(center_point))
