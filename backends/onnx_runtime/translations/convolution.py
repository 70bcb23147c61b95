"""Convolutions, ordinary and transposed."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.absorbed_padding import absorbed_padding
from compiler.backends.onnx_runtime.translations.served_types import refuse_double


def per_dim(value: Any, count: int) -> list[int]:
    listed = [value] if isinstance(value, int) else list(value)
    return listed * count if len(listed) == 1 else listed


@translates("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def convolution(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> ir.Value:
    return _convolved(w, x, weight, bias, stride, padding, dilation, groups)


@translates("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def convolution_named_padding(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: str,
    dilation: Any,
    groups: int,
) -> ir.Value:
    dims = weight.meta["val"].dim() - 2
    if padding == "valid":
        return _convolved(w, x, weight, bias, stride, 0, dilation, groups)
    total = [per_dim(dilation, dims)[i] * (weight.meta["val"].shape[2 + i] - 1) for i in range(dims)]
    starts = [one // 2 for one in total]
    return _convolved(
        w, x, weight, bias, stride, starts, dilation, groups, [a - b for a, b in zip(total, starts, strict=True)]
    )


@translates("aten.convolution.default")
def convolution_general(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    backwards: bool,
    output_padding: Any,
    groups: int,
) -> ir.Value:
    if backwards:
        return _deconvolved(w, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolved(w, x, weight, bias, stride, padding, dilation, groups)


@translates("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> ir.Value:
    return _deconvolved(w, x, weight, bias, stride, padding, output_padding, groups, dilation)


def _convolved(
    w: GraphWriter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    ends: Any = None,
) -> ir.Value:
    refuse_double(x, "convolutions")
    dims = weight.meta["val"].dim() - 2
    starts = per_dim(padding, dims)
    ends = starts if ends is None else ends
    if not any((*starts, *ends)):
        x, starts, ends = absorbed_padding(x, 0.0, dims)
    return w.emit(
        "Conv",
        w.value(x),
        w.value(weight),
        w.value(bias) if bias is not None else None,
        strides=per_dim(stride, dims),
        pads=[*starts, *ends],
        dilations=per_dim(dilation, dims),
        group=groups,
    )


def _deconvolved(
    w: GraphWriter,
    x: fx.Node,
    weight: fx.Node,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> ir.Value:
    refuse_double(x, "convolutions")
    dims = weight.meta["val"].dim() - 2
    return w.emit(
        "ConvTranspose",
        w.value(x),
        w.value(weight),
        w.value(bias) if bias is not None else None,
        strides=per_dim(stride, dims),
        pads=per_dim(padding, dims) * 2,
        output_padding=per_dim(output_padding, dims),
        dilations=per_dim(dilation, dims),
        group=groups,
    )
