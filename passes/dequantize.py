"""quantized layers and weights  ->  float weights, to quantize them anew

Before:  dynamic_quantized_linear(x, W int8, scales, b); quantized_linear(x, W in blocks, scales, zeros, b)
         quantized_embedding(indices, E in few bits, scales); conv(fake_quantize_linear(x), dequantize_linear(W int8))
After:   linear(x, W, b); linear(x, W, b); embedding(indices, E); conv(x, W)
Shapes:  x [..., in], codes in any form that the dialect has; W float32 [out, in], or in the shape of the codes.
Lossy:   activations are no longer rounded, so that outputs move by what that rounding was; the weights are exactly what
         the codes stand for. What quantizing lost the first time stays lost.
Refuses: codes or scales that are computed from inputs.
Source:  ONNX DequantizeLinear, opset 25; com.microsoft MatMulNBits, GatherBlockQuantized and DynamicQuantizeMatMul.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from compiler.hookspecs import hookimpl
from compiler.ops.quantized_linear import dequantized_weight
from compiler.patterns import argument, value
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.sites import Refusal, Site


class StoredWeight(nn.Module):
    """A weight by itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        """The weight."""
        return self.weight


class StoredLinear(nn.Module):
    """A linear layer with a weight [out, in] and a bias [out] or none."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return nn.functional.linear(x, self.weight, self.bias)


class StoredTable(nn.Module):
    """A table [vocabulary, width]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, indices: Tensor) -> Tensor:
        """indices [...] to rows [..., width]."""
        return nn.functional.embedding(indices, self.weight)


@dataclass(frozen=True)
class Dequantize(Graft):
    """Stores the weights of quantized sites as floats again."""

    name: ClassVar[str] = "dequantize"
    healing_weight = 0.0
    site_kinds: ClassVar[tuple[str, ...]] = ("quantized", "quantized-activation")

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The float layer or weight, or nothing in place of a rounding."""
        if site.kind == "quantized-activation":
            return Replacement(nn.Identity(), "no longer rounded")
        return Replacement(_FLOAT_FORMS[site.bindings["form"]](program, site.output), "float weights")


def _weight(program: Program, node: fx.Node) -> nn.Module:
    return StoredWeight(_evaluated(program, node))


def _dynamic_linear(program: Program, node: fx.Node) -> nn.Module:
    codes, scales, bias = (_stored(program, node, name) for name in ("weight", "scales", "bias"))
    assert codes is not None
    assert scales is not None
    return _linear(node, (codes.float() * scales).T, bias)


def _block_linear(program: Program, node: fx.Node) -> nn.Module:
    codes, scales, points, bias = (_stored(program, node, name) for name in ("weight", "scales", "zero_points", "bias"))
    assert codes is not None
    assert scales is not None
    inputs = int(value(argument(node, "x")).shape[-1])
    return _linear(node, dequantized_weight(codes, scales, points, argument(node, "bits"), inputs), bias)


def _table(program: Program, node: fx.Node) -> nn.Module:
    codes = _stored(program, node, "weight")
    assert codes is not None
    rows = torch.arange(len(codes))
    stored = [_stored(program, node, name) for name in ("weight", "scales", "zero_points")]
    assert callable(node.target)
    table: Tensor = node.target(rows, *stored, argument(node, "bits"), argument(node, "block_size"))
    return StoredTable(table)


_FLOAT_FORMS = {
    "dequantize_linear": _weight,
    "dynamic_quantized_linear": _dynamic_linear,
    "quantized_linear": _block_linear,
    "quantized_embedding": _table,
}


def _linear(node: fx.Node, weight: Tensor, bias: Tensor | None) -> StoredLinear:
    dtype = value(node).dtype
    return StoredLinear(weight.to(dtype).contiguous(), None if bias is None else bias.detach().to(dtype).clone())


def _stored(program: Program, node: fx.Node, name: str) -> Tensor | None:
    given = argument(node, name)
    return None if given is None else _evaluated(program, given)


def _evaluated(program: Program, node: fx.Node) -> Any:
    """The value of a node that depends on no input."""
    if node.op == "get_attr":
        return program.weight(node).detach()
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: _evaluated(program, source))
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [Dequantize]
