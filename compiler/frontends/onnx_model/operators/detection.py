"""Operators of object detection: NonMaxSuppression, RoiAlign."""

from __future__ import annotations

from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.ops.non_max_suppression import non_max_suppression as keep_boxes
from compiler.ops.roi_align import roi_align as pool_regions


@operator("NonMaxSuppression", since=10)
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    return keep_boxes(boxes, scores, max_output_boxes_per_class, iou_threshold, score_threshold, bool(center_point_box))  # type: ignore[no-any-return, unused-ignore]


@operator("RoiAlign", since=10)
def roi_align_10(
    x: Tensor, rois: Tensor, batch_indices: Tensor, *, mode: str = "avg", output_height: int = 1,
    output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0, node: NodeContext,
) -> Tensor:  # fmt: skip
    """Before version 16 a pixel's center was its corner."""
    settings = output_height, output_width, sampling_ratio, spatial_scale
    return _pooled(x, rois, batch_indices, settings, False, mode, node)


@operator("RoiAlign", since=16)
def roi_align(
    x: Tensor, rois: Tensor, batch_indices: Tensor, *, coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg", output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0,
    spatial_scale: float = 1.0, node: NodeContext,
) -> Tensor:  # fmt: skip
    settings = output_height, output_width, sampling_ratio, spatial_scale
    return _pooled(x, rois, batch_indices, settings, coordinate_transformation_mode == "half_pixel", mode, node)


def _pooled(
    x: Tensor, rois: Tensor, batch_indices: Tensor, settings: tuple[int, int, int, float], half_pixel: bool, mode: str,
    node: NodeContext,
) -> Tensor:  # fmt: skip
    if mode not in ("avg", "max"):
        raise node.refuse(f"mode {mode!r} is not known", "It pools by avg or max.")
    return pool_regions(x, rois, batch_indices, *settings, half_pixel, mode == "max")  # type: ignore[no-any-return, unused-ignore]
