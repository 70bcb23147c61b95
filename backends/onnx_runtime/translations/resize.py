"""aten's upsampling as one Resize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.backends.onnx_runtime.translations.shapes import shape_of

NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@translates("aten.upsample_nearest1d.default", "aten.upsample_nearest2d.default", "aten.upsample_nearest3d.default")
def upsample_nearest(w: GraphWriter, node: fx.Node, x: fx.Node, sizes: Any, *scales: float | None) -> ir.Value:
    return _resized(w, node, x, scales, NEAREST)


@translates("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec", "aten.upsample_nearest3d.vec")
def upsample_nearest_by_scales(
    w: GraphWriter, node: fx.Node, x: fx.Node, sizes: Any, scales: Sequence[float] | None
) -> ir.Value:
    return _resized(w, node, x, scales or (), NEAREST)


@translates(
    "aten.upsample_linear1d.default",
    "aten.upsample_bilinear2d.default",
    "aten.upsample_trilinear3d.default",
    "aten.upsample_bicubic2d.default",
)
def upsample(w: GraphWriter, node: fx.Node, x: fx.Node, sizes: Any, corners: bool, *scales: float | None) -> ir.Value:
    return _resized(w, node, x, scales, _interpolation(node, corners))


@translates(
    "aten.upsample_linear1d.vec",
    "aten.upsample_bilinear2d.vec",
    "aten.upsample_trilinear3d.vec",
    "aten.upsample_bicubic2d.vec",
)
def upsample_by_scales(
    w: GraphWriter, node: fx.Node, x: fx.Node, sizes: Any, corners: bool, scales: Sequence[float] | None
) -> ir.Value:
    return _resized(w, node, x, scales or (), _interpolation(node, corners))


def _interpolation(node: fx.Node, corners: bool) -> dict[str, Any]:
    transformation = "align_corners" if corners else "half_pixel"
    if "bicubic" in str(node.target):
        return {"mode": "cubic", "cubic_coeff_a": -0.75, "coordinate_transformation_mode": transformation}
    return {"mode": "linear", "coordinate_transformation_mode": transformation}


def _resized(
    w: GraphWriter, node: fx.Node, x: fx.Node, scales: Sequence[float | None], attributes: dict[str, Any]
) -> ir.Value:
    """By scales where they are stated, since they decide positions; by sizes otherwise. In float32 for halves."""
    dtype = result_type(node)
    value = w.value(x) if dtype in (torch.float32, torch.uint8) else w.cast(w.value(x), torch.float32)
    if scales and all(scale is not None for scale in scales):
        bounds = w.constant([1, 1, *scales], np.float32), None
    else:
        bounds = None, w.sizes(shape_of(node))
    result = w.emit("Resize", value, None, *bounds, **attributes)
    return result if dtype in (torch.float32, torch.uint8) else w.cast(result, dtype)
