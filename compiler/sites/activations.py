"""What elementwise nodes between two linear layers compute: told by evaluating them, however they are written out.

gpt2 writes gelu in eight nodes and bloom in nine others; both are `gelu_tanh` because they give its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from compiler.patterns import aten

NONLINEAR = frozenset(
    {
        aten.celu.default,
        aten.elu.default,
        aten.erf.default,
        aten.gelu.default,
        aten.hardsigmoid.default,
        aten.hardswish.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.mish.default,
        aten.relu.default,
        aten.relu6.default,
        aten.selu.default,
        aten.sigmoid.default,
        aten.silu.default,
        aten.softplus.default,
        aten.tanh.default,
        aten.clamp_min.default,
    }
)
ARITHMETIC = frozenset(
    {
        aten.add.Tensor,
        aten.add.Scalar,
        aten.div.Tensor,
        aten.div.Scalar,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.neg.default,
        aten.pow.Tensor_Scalar,
        aten.square.default,
        aten.sub.Tensor,
        aten.to.dtype,
    }
)
ELEMENTWISE = NONLINEAR | ARITHMETIC

KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu_squared": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
}
TOLERANCE = 1e-6


def evaluate(nodes: Sequence[fx.Node], output: fx.Node, given: Mapping[fx.Node, Tensor]) -> Tensor:
    """The value of `output` when `given` nodes have these values; `nodes` are the elementwise ones between."""
    values: dict[fx.Node, Any] = dict(given)
    for node in nodes:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
        assert callable(node.target)
        values[node] = args[0] if node.target is aten.to.dtype else node.target(*args, **kwargs)
    result: Tensor = values[output]
    return result


def probe_points() -> Tensor:
    """Where functions are compared: both tails and the bend at 0, in float64. [65]"""
    return torch.linspace(-8, 8, 65, dtype=torch.float64)


def activation_name(values: Tensor) -> str:
    """The known activation with these values at `probe_points()`, or `unknown`."""
    for name, function in KNOWN.items():
        if torch.allclose(values, function(probe_points()), rtol=0, atol=TOLERANCE):
            return name
    return "unknown"
