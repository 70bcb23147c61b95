"""Pools over windows and over whole planes."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.absorbed_padding import absorbed_padding
from compiler.backends.onnx_runtime.translations.convolution import per_dim
from compiler.backends.onnx_runtime.translations.served_types import refuse_double
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.errors import CompilerError


def _max_pool(
    w: GraphWriter,
    x: fx.Node,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    *,
    outputs: int,
) -> tuple[ir.Value, ...]:
    """Padding before it is the pool's own, unless it counts: as places for indices, or where sizes are rounded up."""
    dims = len(shape_of(x)) - 2
    sizes, widths = per_dim(kernel, dims), per_dim(padding, dims)
    starts = ends = widths
    if outputs == 1 and not ceil_mode and not any(widths):
        x, starts, ends = absorbed_padding(x, float("-inf"), dims, sizes)
    return w.emit_several(
        "MaxPool",
        w.value(x),
        outputs=outputs,
        kernel_shape=sizes,
        strides=per_dim(stride or kernel, dims),
        pads=[*starts, *ends],
        dilations=per_dim(dilation, dims),
        ceil_mode=int(ceil_mode),
    )


@translates("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(w: GraphWriter, node: fx.Node, x: fx.Node, *settings: Any) -> ir.Value:
    return _max_pool(w, x, *settings, outputs=1)[0]


@translates(
    "aten.max_pool1d_with_indices.default",
    "aten.max_pool2d_with_indices.default",
    "aten.max_pool3d_with_indices.default",
)
def max_pool_with_indices(w: GraphWriter, node: fx.Node, x: fx.Node, *settings: Any) -> tuple[ir.Value, ir.Value]:
    """torch's indices count within a plane, those of ONNX within the whole input."""
    dims = len(shape_of(x)) - 2
    pooled, indices = _max_pool(w, x, *settings, outputs=2)
    sizes = [w.dim_of(x, 2 + dim) for dim in range(dims)]
    known = [known_size(size) for size in shape_of(x)[2:]]
    if all(size is not None for size in known):
        plane = w.constant([math.prod(size or 1 for size in known)], np.int64)
    else:
        plane = reduce(lambda left, right: w.emit("Mul", left, right), sizes)
    return pooled, w.emit("Mod", indices, plane)


@translates("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def average_pool(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_padding: bool,
    *rest: Any,
) -> ir.Value:
    if rest and rest[0] is not None:
        raise CompilerError("lowering to ONNX", "average pooling with divisor_override", "Scale afterwards.", node.name)
    refuse_double(x, "average pools")
    dims = len(shape_of(x)) - 2
    sizes, widths = per_dim(kernel, dims), per_dim(padding, dims)
    starts = ends = widths
    if not ceil_mode and not any(widths):
        x, starts, ends = absorbed_padding(x, 0.0, dims, sizes)
        count_padding = True
    return w.emit(
        "AveragePool",
        w.value(x),
        kernel_shape=sizes,
        strides=per_dim(stride or kernel, dims),
        pads=[*starts, *ends],
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_padding and any((*starts, *ends))),
    )


@translates("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
def adaptive_average_pool(w: GraphWriter, node: fx.Node, x: fx.Node, size: Any) -> ir.Value:
    """To one place: the mean of the plane. Otherwise windows of one width, where the sizes divide."""
    refuse_double(x, "average pools")
    dims = len(shape_of(x)) - 2
    wanted = per_dim(size, dims)
    if all(one == 1 for one in wanted):
        return w.emit("GlobalAveragePool", w.value(x))
    held = [known_size(one) for one in shape_of(x)[2:]]
    if any(one is None or one % target for one, target in zip(held, wanted, strict=True)):
        problem = f"adaptive pooling of {shape_of(x)} to {wanted}"
        raise CompilerError("lowering to ONNX", problem, "Pool to sizes that divide the input's.", node.name)
    window = [math.floor((one or 0) / target) for one, target in zip(held, wanted, strict=True)]
    return w.emit("AveragePool", w.value(x), kernel_shape=window, strides=window)
