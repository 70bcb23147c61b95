"""Activation functions, each as the one ONNX operator that it is."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.kernel_types import computed
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.arithmetic import clamp
from compiler.backends.onnx_runtime.translations.comparison import chosen
from compiler.backends.onnx_runtime.translations.elementwise import require_first_alone, result_type
from compiler.errors import CompilerError

SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805
"""torch's, Klambauer et al. 2017, arXiv:1706.02515, equation 14."""
TRAINING_HINT = "Export the model in evaluation: model.eval()."
SOFTPLUS_EXACT_ABOVE = 15.0
"""From there on log(1 + exp(x)) is x to float32's precision."""


@translates("aten.relu.default")
def relu(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    dtype = result_type(node)
    return computed(w, "Relu", dtype, x) if dtype.is_floating_point else computed(w, "Max", dtype, x, 0)


@translates("aten.silu.default")
def silu(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    dtype = result_type(node)
    return computed(w, "Mul", dtype, x, computed(w, "Sigmoid", dtype, x))


@translates("aten.gelu.default")
def gelu(w: GraphWriter, node: fx.Node, x: fx.Node, approximate: str) -> ir.Value:
    return computed(w, "Gelu", result_type(node), x, approximate=approximate if approximate != "none" else None)


@translates("aten.leaky_relu.default")
def leaky_relu(w: GraphWriter, node: fx.Node, x: fx.Node, slope: float) -> ir.Value:
    return computed(w, "LeakyRelu", result_type(node), x, alpha=float(slope))


@translates("aten.prelu.default")
def prelu(w: GraphWriter, node: fx.Node, x: fx.Node, slope: fx.Node) -> ir.Value:
    """torch's slope has the channels alone; ONNX's broadcasts, with dims behind them."""
    dtype = result_type(node)
    behind = x.meta["val"].dim() - 2
    shaped = w.value(slope) if behind <= 0 else w.emit("Reshape", w.value(slope), w.sizes([-1, *[1] * behind]))
    return computed(w, "PRelu", dtype, x, shaped)


@translates("aten.elu.default")
def elu(w: GraphWriter, node: fx.Node, x: fx.Node, alpha: float, scale: float, input_scale: float) -> ir.Value:
    dtype = result_type(node)
    scaled = w.value(x) if input_scale == 1 else computed(w, "Mul", dtype, x, input_scale)
    if scale != 1 and input_scale == 1:
        return computed(w, "Selu", dtype, scaled, alpha=float(alpha), gamma=float(scale))
    value = computed(w, "Elu", dtype, scaled, alpha=float(alpha))
    return value if scale == 1 else computed(w, "Mul", dtype, value, scale)


@translates("aten.selu.default")
def selu(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return computed(w, "Selu", result_type(node), x, alpha=SELU_ALPHA, gamma=SELU_GAMMA)


@translates("aten.celu.default")
def celu(w: GraphWriter, node: fx.Node, x: fx.Node, alpha: float) -> ir.Value:
    return computed(w, "Celu", result_type(node), x, alpha=float(alpha))


@translates("aten.threshold.default")
def threshold(w: GraphWriter, node: fx.Node, x: fx.Node, limit: float, value: float) -> ir.Value:
    dtype = result_type(node)
    if value == 0 and dtype.is_floating_point:
        return computed(w, "ThresholdedRelu", dtype, x, alpha=float(limit))
    return chosen(w, dtype, computed(w, "Greater", dtype, x, limit, result=torch.bool), x, value)


@translates("aten.hardsigmoid.default")
def hardsigmoid(w: GraphWriter, node: fx.Node, x: fx.Node) -> ir.Value:
    return computed(w, "HardSigmoid", result_type(node), x, alpha=1.0 / 6.0, beta=0.5)


@translates("aten.hardtanh.default")
def hardtanh(w: GraphWriter, node: fx.Node, x: fx.Node, minimum: float, maximum: float) -> ir.Value:
    """relu6 is one of these."""
    return clamp(w, node, x, minimum, maximum)


@translates("aten.log_sigmoid_forward.default")
def log_sigmoid(w: GraphWriter, node: fx.Node, x: fx.Node) -> tuple[ir.Value, ...]:
    """log(sigmoid(x)) = -softplus(-x). What torch keeps for gradients has no counterpart."""
    require_first_alone(node, "values that are kept for gradients")
    dtype = result_type(x)
    value = computed(w, "Neg", dtype, computed(w, "Softplus", dtype, computed(w, "Neg", dtype, x)))
    return value, value


@translates("aten.rrelu_with_noise_functional.default")
def rrelu(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    noise: fx.Node,
    lower: float,
    upper: float,
    training: bool,
    generator: None,
) -> tuple[ir.Value, ...]:
    """The slope is drawn only while training; else it is the middle one."""
    require_first_alone(node, "the slopes of a rrelu")
    if training:
        raise CompilerError("lowering to ONNX", "the slopes of rrelu are drawn at random", TRAINING_HINT, node.name)
    value = computed(w, "LeakyRelu", result_type(x), x, alpha=(lower + upper) / 2)
    return value, value


@translates("aten.softplus.default")
def softplus(w: GraphWriter, node: fx.Node, x: fx.Node, beta: float, threshold: float) -> ir.Value:
    dtype = result_type(node)
    scaled = w.value(x) if beta == 1 else computed(w, "Mul", dtype, x, beta)
    soft = computed(w, "Softplus", dtype, scaled)
    soft = soft if beta == 1 else computed(w, "Div", dtype, soft, beta)
    if threshold >= SOFTPLUS_EXACT_ABOVE:
        return soft
    return w.emit("Where", computed(w, "Greater", dtype, scaled, threshold, result=torch.bool), w.value(x), soft)
