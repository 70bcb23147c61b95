"""Products, convolutions, norms and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size
from compiler.backends.onnx_runtime.translations import operator_name, translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.backends.onnx_runtime.translations.shapes import shape_of, transposed
from compiler.errors import CompilerError


def transposed_weight(w: GraphWriter, weight: fx.Node) -> ir.Value:
    """A weight [out, in] as [in, out]: stored that way, unless it is stored as it is for another use already."""
    if (
        operator_name(weight) in ("aten.transpose.int", "aten.t.default", "aten.permute.default")
        and len(shape_of(weight)) == 2
    ):
        return w.value(weight.all_input_nodes[0])
    shared_use = any(str(user.target).startswith(("aten.embedding", "regraft")) for user in weight.users)
    if weight.op == "get_attr" and not shared_use:
        return w.weight(weight, _transpose, "transposed")
    return transposed(w, w.value(weight), [1, 0])


def _transpose(weight: Tensor) -> Tensor:
    return weight.t()


@translates("aten.linear.default")
def linear(w: GraphWriter, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> ir.Value:
    product = w.emit("MatMul", w.value(x), transposed_weight(w, weight))
    return product if bias is None else w.emit("Add", product, w.value(bias))


@translates("aten.addmm.default")
def addmm(w: GraphWriter, node: fx.Node, bias: fx.Node, x: fx.Node, weight: fx.Node, beta: Any, alpha: Any) -> ir.Value:
    return w.emit("Gemm", w.value(x), w.value(weight), w.value(bias), alpha=float(alpha), beta=float(beta))


@translates("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(w: GraphWriter, node: fx.Node, x: fx.Node, y: fx.Node) -> ir.Value:
    return w.emit("MatMul", w.value(x), w.value(y))


@translates("aten.baddbmm.default")
def baddbmm(w: GraphWriter, node: fx.Node, added: fx.Node, x: fx.Node, y: fx.Node, beta: Any, alpha: Any) -> ir.Value:
    dtype = result_type(node)
    product = w.emit("MatMul", w.value(x), w.value(y))
    if alpha != 1:
        product = w.emit("Mul", product, w.tensor(alpha, dtype))
    if beta == 0:
        return product
    scaled = w.value(added) if beta == 1 else w.emit("Mul", w.value(added), w.tensor(beta, dtype))
    return w.emit("Add", product, scaled)


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


@translates("aten.conv1d.padding", "aten.conv2d.padding")
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
    total = [_each(dilation, dims)[i] * (weight.meta["val"].shape[2 + i] - 1) for i in range(dims)]
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


@translates("aten.conv_transpose1d.default", "aten.conv_transpose2d.input")
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


def _each(value: Any, count: int) -> list[int]:
    listed = [value] if isinstance(value, int) else list(value)
    return listed * count if len(listed) == 1 else listed


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
    dims = weight.meta["val"].dim() - 2
    starts = _each(padding, dims)
    return w.emit(
        "Conv",
        w.value(x),
        w.value(weight),
        w.value(bias) if bias is not None else None,
        strides=_each(stride, dims),
        pads=[*starts, *(starts if ends is None else ends)],
        dilations=_each(dilation, dims),
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
    dims = weight.meta["val"].dim() - 2
    return w.emit(
        "ConvTranspose",
        w.value(x),
        w.value(weight),
        w.value(bias) if bias is not None else None,
        strides=_each(stride, dims),
        pads=_each(padding, dims) * 2,
        output_padding=_each(output_padding, dims),
        dilations=_each(dilation, dims),
        group=groups,
    )


@translates("aten.layer_norm.default")
def layer_norm(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    shape: Sequence[int],
    weight: fx.Node | None,
    bias: fx.Node | None,
    epsilon: float,
    cudnn: bool,
) -> ir.Value:
    dtype = result_type(node)
    scale = w.value(weight) if weight is not None else w.constant(torch.ones(tuple(shape), dtype=dtype).numpy())
    return w.emit(
        "LayerNormalization",
        w.value(x),
        scale,
        w.value(bias) if bias is not None else None,
        axis=-len(shape),
        epsilon=float(epsilon),
    )


@translates("aten.rms_norm.default")
def rms_norm(
    w: GraphWriter, node: fx.Node, x: fx.Node, shape: Sequence[int], weight: fx.Node | None, epsilon: float | None
) -> ir.Value:
    dtype = result_type(node)
    scale = w.value(weight) if weight is not None else w.constant(torch.ones(tuple(shape), dtype=dtype).numpy())
    chosen = torch.finfo(dtype).eps if epsilon is None else epsilon
    return w.emit("RMSNormalization", w.value(x), scale, axis=-len(shape), epsilon=float(chosen))


@translates("regraft.rms_norm.default")
def regraft_rms_norm(w: GraphWriter, node: fx.Node, x: fx.Node, weight: fx.Node, epsilon: float) -> ir.Value:
    return w.emit("RMSNormalization", w.value(x), w.value(weight), axis=-1, epsilon=float(epsilon))


@translates("aten.batch_norm.default")
def batch_norm(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: Any,
    epsilon: float,
    cudnn: bool,
) -> ir.Value:
    if training or mean is None:
        raise CompilerError("lowering to ONNX", "batch norm in training mode", "Call .eval() on the model.", node.name)
    return _normalized_by_statistics(w, x, weight, bias, mean, var, epsilon)


@translates("aten._native_batch_norm_legit_no_training.default")
def batch_norm_with_statistics(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    momentum: Any,
    epsilon: float,
) -> tuple[ir.Value, ...]:
    return (_normalized_by_statistics(w, x, weight, bias, mean, var, epsilon),)


def _normalized_by_statistics(
    w: GraphWriter, x: fx.Node, weight: Any, bias: Any, mean: Any, var: Any, epsilon: float
) -> ir.Value:
    channels = mean.meta["val"].shape
    scale = w.value(weight) if weight is not None else w.constant(np.ones(channels, np.float32))
    shift = w.value(bias) if bias is not None else w.constant(np.zeros(channels, np.float32))
    return w.emit("BatchNormalization", w.value(x), scale, shift, w.value(mean), w.value(var), epsilon=float(epsilon))


@translates("aten.group_norm.default")
def group_norm(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    groups: int,
    weight: fx.Node | None,
    bias: fx.Node | None,
    epsilon: float,
    cudnn: bool,
) -> ir.Value:
    channels = shape_of(x)[1]
    scale = w.value(weight) if weight is not None else w.constant(np.ones(channels, np.float32))
    shift = w.value(bias) if bias is not None else w.constant(np.zeros(channels, np.float32))
    return w.emit("GroupNormalization", w.value(x), scale, shift, num_groups=groups, epsilon=float(epsilon))


@translates("aten.max_pool1d.default", "aten.max_pool2d.default")
def max_pool(
    w: GraphWriter, node: fx.Node, x: fx.Node, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> ir.Value:
    dims = len(shape_of(x)) - 2
    return w.emit(
        "MaxPool",
        w.value(x),
        kernel_shape=_each(kernel, dims),
        strides=_each(stride or kernel, dims),
        pads=_each(padding, dims) * 2,
        dilations=_each(dilation, dims),
        ceil_mode=int(ceil_mode),
    )


@translates("aten.avg_pool1d.default", "aten.avg_pool2d.default")
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
    dims = len(shape_of(x)) - 2
    return w.emit(
        "AveragePool",
        w.value(x),
        kernel_shape=_each(kernel, dims),
        strides=_each(stride or kernel, dims),
        pads=_each(padding, dims) * 2,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_padding),
    )


@translates("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default")
def adaptive_average_pool(w: GraphWriter, node: fx.Node, x: fx.Node, size: Any) -> ir.Value:
    """To one place: the mean. Otherwise windows of one width, where the sizes divide."""
    dims = len(shape_of(x)) - 2
    wanted = _each(size, dims)
    axes = w.constant(list(range(2, 2 + dims)), np.int64)
    if all(one == 1 for one in wanted):
        return w.emit("ReduceMean", w.value(x), axes, keepdims=1)
    held = [known_size(one) for one in shape_of(x)[2:]]
    if any(one is None or one % target for one, target in zip(held, wanted, strict=True)):
        problem = f"adaptive pooling of {shape_of(x)} to {wanted}"
        raise CompilerError("lowering to ONNX", problem, "Pool to sizes that divide the input's.", node.name)
    window = [math.floor((one or 0) / target) for one, target in zip(held, wanted, strict=True)]
    return w.emit("AveragePool", w.value(x), kernel_shape=window, strides=window)


@translates("aten.glu.default")
def glu(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int) -> ir.Value:
    left, right = w.emit_several("Split", w.value(x), outputs=2, axis=dim, num_outputs=2)
    return w.emit("Mul", left, w.emit("Sigmoid", right))


@translates("aten.pixel_shuffle.default")
def pixel_shuffle(w: GraphWriter, node: fx.Node, x: fx.Node, factor: int) -> ir.Value:
    return w.emit("DepthToSpace", w.value(x), blocksize=factor, mode="CRD")
