"""Products and convolutions of com.microsoft with what optimizers fuse to them: transposes, factors, activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import find_operator, operator
from compiler.frontends.onnx_model.operators.linear_algebra import gemm
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT

CONV_VERSION = 11


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(
    a: Tensor, b: Tensor, *, alpha: float = 1.0, trans_a: int = 0, trans_b: int = 0, trans_batch_a: int = 0,
    trans_batch_b: int = 0,
) -> Tensor:  # fmt: skip
    product = _turned(a, trans_a, trans_batch_a) @ _turned(b, trans_b, trans_batch_b)
    return product if alpha == 1 else product * alpha


@operator("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(
    a: Tensor, b: Tensor, *, activation: str, activation_alpha: float | None = None,
    activation_beta: float | None = None, activation_gamma: float | None = None, activation_axis: int = -1,
    alpha: float = 1.0, trans_a: int = 0, trans_b: int = 0, trans_batch_a: int = 0, trans_batch_b: int = 0,
    node: NodeContext,
) -> Tensor:  # fmt: skip
    product = fused_matmul(
        a, b, alpha=alpha, trans_a=trans_a, trans_b=trans_b, trans_batch_a=trans_batch_a, trans_batch_b=trans_batch_b
    )
    if activation == "Softmax":
        return torch.softmax(product, dim=activation_axis)
    return _activated(product, activation, (activation_alpha, activation_beta, activation_gamma), node)


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, activation: str = "", activation_alpha: float | None = None,
    activation_beta: float | None = None, activation_gamma: float | None = None, alpha: float = 1.0, beta: float = 1.0,
    trans_a: int = 0, trans_b: int = 0, node: NodeContext,
) -> Tensor:  # fmt: skip
    product = gemm(a, b, c, alpha=alpha, beta=beta, trans_a=trans_a, trans_b=trans_b)
    return _activated(product, activation, (activation_alpha, activation_beta, activation_gamma), node)


@operator("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    product = x @ w
    return F.gelu(product if bias is None else product + bias, approximate="tanh")


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None, *, activation: str = "",
    activation_params: list[float] | None = None, auto_pad: str = "NOTSET", dilations: list[int] | None = None,
    group: int = 1, kernel_shape: list[int] | None = None, pads: list[int] | None = None,
    strides: list[int] | None = None, node: NodeContext,
) -> Tensor:  # fmt: skip
    """z is added before the activation."""
    y = _convolved(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return _activated(y if z is None else y + z, activation, activation_params or (), node)


@operator("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def channels_last_conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None, *, activation: str = "",
    activation_params: list[float] | None = None, auto_pad: str = "NOTSET", dilations: list[int] | None = None,
    group: int = 1, kernel_shape: list[int] | None = None, pads: list[int] | None = None,
    strides: list[int] | None = None, node: NodeContext,
) -> Tensor:  # fmt: skip
    """x and z [batch, *spatial, channels]; w as in Conv."""
    first = x.movedim(-1, 1)
    y = _convolved(first, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    y = y.movedim(1, -1)
    return _activated(y if z is None else y + z, activation, activation_params or (), node)


def _turned(x: Tensor, last_two: int, batch: int) -> Tensor:
    """[d0, *batch, m, k] with its first dim moved behind the batch where asked, and then its last two exchanged."""
    if batch:
        x = x.movedim(0, -2)
    return x.transpose(-2, -1) if last_two else x


def _convolved(x: Tensor, w: Tensor, b: Tensor | None, **attributes: Any) -> Tensor:
    entry = find_operator("", "Conv", CONV_VERSION)
    assert entry is not None
    result: Tensor = entry.function(x, w, b, **attributes)
    return result


def _activated(x: Tensor, activation: str, parameters: Sequence[float | None], node: NodeContext) -> Tensor:
    """`activation` of ONNX by name, with its alpha, beta and gamma where they are given."""
    given = [one for one in parameters if one is not None]
    match activation:
        case "":
            return x
        case "Relu":
            return torch.relu(x)
        case "Tanh":
            return torch.tanh(x)
        case "Sigmoid":
            return torch.sigmoid(x)
        case "LeakyRelu":
            return F.leaky_relu(x, given[0] if given else 0.01)
        case "Clip":
            return x.clamp(*given) if given else x
        case "HardSigmoid":
            alpha, beta = given or (0.2, 0.5)
            return (alpha * x + beta).clamp(0, 1)
        case "HardSwish":
            return F.hardswish(x)
        case "Gelu":
            return F.gelu(x)
        case "Softplus":
            return F.softplus(x)
    raise node.refuse(f"its activation is {activation}", "Write the activation as a node of its own.")
