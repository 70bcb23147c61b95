"""batch_norm(conv(x, W, b))  ->  conv(x, W', b')

Before:  conv -> batch_norm (evaluation mode)                 After:  conv
Shapes:  conv of 1, 2 or 3 dims, transposed or not, grouped or not; W' as W, b' [out_channels].
         scale = gamma / sqrt(variance + epsilon);   W' = W * scale per output channel;   b' = (b - mean) * scale + beta
Exact up to rounding: 1e-5 of the largest output in float32, 2e-2 in bfloat16; W' and b' are computed in float64.
Refuses: batch_norm in training mode; a convolution with other users; a weight or bias that something else reads or that
         is computed; batch_norm without running statistics.
Source:  Jacob et al. 2018, arXiv:1712.05877, eq. 14.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from compiler.hookspecs import hookimpl
from compiler.patterns import argument, aten, is_call, is_weight, only_user, replace
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal

CONVOLUTIONS = frozenset(
    {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default}
    | {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
)
TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})


@dataclass(frozen=True)
class FuseConvBatchNorm(Rewrite):
    """batch_norm(conv(x, W, b))  ->  conv(x, W', b')"""

    name: ClassVar[str] = "fuse-conv-batch-norm"
    family: ClassVar[str | None] = "fuse"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the convolutions that took a batch norm in."""
        changed: list[str] = []
        refusals: list[Refusal] = []
        for node in list(program.graph.nodes):
            if not is_call(node, aten.batch_norm.default) or not is_call(node.args[0], *CONVOLUTIONS, *TRANSPOSED):
                continue
            conv = node.args[0]
            assert isinstance(conv, fx.Node)
            reason = _obstacle(program, conv, node)
            if reason is not None:
                refusals.append(Refusal(reason, node.name, node.name, "batch-norm"))
                continue
            _fuse(program, conv, node)
            changed.append(conv.name)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(changed), refusals=tuple(refusals))


def _obstacle(program: Program, conv: fx.Node, norm: fx.Node) -> str | None:
    if argument(norm, "training"):
        return "batch_norm is in training mode"
    if only_user(conv) is not norm:
        return "the convolution has other users"
    if argument(norm, "running_mean") is None or argument(norm, "running_var") is None:
        return "batch_norm has no running statistics"
    own = [argument(conv, "weight"), argument(conv, "bias")]
    statistics = [argument(norm, name) for name in ("weight", "bias", "running_mean", "running_var")]
    if not all(is_weight(node) for node in (*own, *statistics) if node is not None):
        return "a weight is computed, not stored"
    readers = Counter(str(node.target) for node in program.graph.nodes if node.op == "get_attr")
    if any(only_user(node) is not conv or readers[str(node.target)] > 1 for node in own if node is not None):
        return "something else reads the convolution's weight or bias"
    return None


def _fuse(program: Program, conv: fx.Node, norm: fx.Node) -> None:
    def stored(node: fx.Node, name: str) -> Tensor | None:
        source = argument(node, name)
        return None if source is None else program.weight(source).detach().double()

    mean, variance = stored(norm, "running_mean"), stored(norm, "running_var")
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + argument(norm, "eps"))  # [out_channels]
    gamma, beta = stored(norm, "weight"), stored(norm, "bias")
    scale = scale if gamma is None else scale * gamma
    weight, bias = stored(conv, "weight"), stored(conv, "bias")
    assert weight is not None
    shifted = (-mean if bias is None else bias - mean) * scale
    shifted = shifted if beta is None else shifted + beta
    weight_node: fx.Node = argument(conv, "weight")
    original = program.weight(weight_node)
    scaled = _scaled(weight, scale, argument(conv, "groups"), _is_transposed(conv))
    _store(program, str(weight_node.target), scaled.to(original.dtype), like=original)
    _store_bias(program, conv, weight_node, shifted.to(original.dtype), like=original)
    replace(norm, conv)


def _is_transposed(conv: fx.Node) -> bool:
    if is_call(conv, aten.convolution.default):
        return bool(argument(conv, "transposed"))
    return is_call(conv, *TRANSPOSED)


def _scaled(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> Tensor:
    """The weight with output channels scaled: dim 0 of [out, in / groups, ...], dim 1 of [in, out / groups, ...]."""
    if not transposed:
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    grouped = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])  # [groups, in, out, ...]
    return (grouped * scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))).view_as(weight)


def _store(program: Program, name: str, tensor: Tensor, *, like: Tensor) -> None:
    program.set_weight(name, tensor, trainable=like.requires_grad)


def _store_bias(program: Program, conv: fx.Node, weight: fx.Node, bias: Tensor, *, like: Tensor) -> None:
    """Write the convolution's bias, giving it one where it had none."""
    node = argument(conv, "bias")
    if node is not None:
        _store(program, str(node.target), bias, like=like)
        return
    owner, _, leaf = str(weight.target).rpartition(".")
    name = program.free_name(f"{owner}.bias" if owner and leaf == "weight" else f"{weight.target}_bias")
    _store(program, name, bias, like=like)
    with program.graph.inserting_before(weight):
        node = program.graph.get_attr(name)
    conv.args = (*conv.args[:2], node, *conv.args[3:])
    conv.kwargs = {key: item for key, item in conv.kwargs.items() if key != "bias"}


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FuseConvBatchNorm]
