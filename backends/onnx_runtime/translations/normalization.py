"""Normalization layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.backends.onnx_runtime.translations.served_types import refuse_double
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.errors import CompilerError


def _scale(w: GraphWriter, node: fx.Node, shape: Sequence[Any], weight: fx.Node | None) -> ir.Value:
    """The weight of a norm over dims of `shape`, or ones."""
    if weight is not None:
        return w.value(weight)
    one = torch.ones(1, dtype=result_type(node)).numpy()
    known = [size for given in shape if (size := known_size(given)) is not None]
    if len(known) == len(shape):
        return w.constant(np.broadcast_to(one, known))
    return w.emit("Expand", w.constant(one), w.sizes(shape))


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
    return w.emit(
        "LayerNormalization",
        w.value(x),
        _scale(w, node, shape, weight),
        w.value(bias) if bias is not None else None,
        axis=-len(shape),
        epsilon=float(epsilon),
    )


@translates("aten.rms_norm.default")
def rms_norm(
    w: GraphWriter, node: fx.Node, x: fx.Node, shape: Sequence[int], weight: fx.Node | None, epsilon: float | None
) -> ir.Value:
    dtype = result_type(node)
    scale = _scale(w, node, shape, weight)
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


def _scale_and_shift(
    w: GraphWriter, weight: fx.Node | None, bias: fx.Node | None, channels: int, dtype: torch.dtype
) -> tuple[ir.Value, ir.Value]:
    """The weight and bias of a norm with one of each a channel; ones and zeros where they are left out."""
    scale = w.value(weight) if weight is not None else w.constant(torch.ones(channels, dtype=dtype).numpy())
    shift = w.value(bias) if bias is not None else w.constant(torch.zeros(channels, dtype=dtype).numpy())
    return scale, shift


def _normalized_by_statistics(
    w: GraphWriter, x: fx.Node, weight: Any, bias: Any, mean: Any, var: Any, epsilon: float
) -> ir.Value:
    scale, shift = _scale_and_shift(w, weight, bias, mean.meta["val"].shape[0], mean.meta["val"].dtype)
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
    scale, shift = _scale_and_shift(w, weight, bias, shape_of(x)[1], result_type(node))
    return w.emit("GroupNormalization", w.value(x), scale, shift, num_groups=groups, epsilon=float(epsilon))


@translates("aten.instance_norm.default")
def instance_norm(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    mean: fx.Node | None,
    var: fx.Node | None,
    by_instance: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool,
) -> ir.Value:
    if not by_instance:
        return _normalized_by_statistics(w, x, weight, bias, mean, var, epsilon)
    if mean is not None:
        problem = "instance norm that updates running statistics"
        raise CompilerError("lowering to ONNX", problem, "Call .eval() on the model.", node.name)
    refuse_double(x, "instance norms")
    scale, shift = _scale_and_shift(w, weight, bias, shape_of(x)[1], result_type(node))
    return w.emit("InstanceNormalization", w.value(x), scale, shift, epsilon=float(epsilon))
