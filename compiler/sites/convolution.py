"""Convolution sites: 1, 2 or 3 spatial dims, with a stored weight.

Inputs:    x [batch, channels, *spatial].      Output: [batch, out_channels, *spatial].
Bindings:  weight, bias (dotted names, bias may be None), stride, padding (tuples, or "same" / "valid"), dilation,
           groups, dims, in_channels, out_channels, kernel.
Refuses:   a weight that the graph computes; a transposed convolution.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from compiler.patterns import argument, aten, is_call, is_weight, value
from compiler.sites.names import refusal, weighted_name
from compiler.sites.site import Refusal, Site

CONVOLUTIONS = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
    aten.conv1d.padding: 1,
    aten.conv2d.padding: 2,
    aten.conv3d.padding: 3,
}
TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})


def match_convolution(node: fx.Node) -> Site | Refusal | None:
    """The convolution site at `node`, a refusal, or None when `node` convolves nothing."""
    if is_call(node, *TRANSPOSED):
        return refusal("convolution", "a transposed convolution", node)
    if is_call(node, aten.convolution.default):
        if argument(node, "transposed"):
            return refusal("convolution", "a transposed convolution", node)
        dims = value(node).dim() - 2
    elif is_call(node, *CONVOLUTIONS):
        dims = CONVOLUTIONS[node.target]  # type: ignore[index]
    else:
        return None
    weight, bias = argument(node, "weight"), argument(node, "bias")
    for role, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not is_weight(tensor):
            return refusal("convolution", f"the {role} is computed by {tensor.name}", node)
    out_channels, channels_in_group, *kernel = value(weight).shape
    groups = argument(node, "groups")
    return Site(
        kind="convolution",
        name=weighted_name(node, str(weight.target)),
        nodes=(node,),
        inputs=(argument(node, "input"),),
        output=node,
        bindings={
            "weight": str(weight.target),
            "bias": None if bias is None else str(bias.target),
            "stride": _per_dim(argument(node, "stride"), dims),
            "padding": _per_dim(argument(node, "padding"), dims),
            "dilation": _per_dim(argument(node, "dilation"), dims),
            "groups": int(groups),
            "dims": dims,
            "in_channels": int(channels_in_group) * int(groups),
            "out_channels": int(out_channels),
            "kernel": tuple(int(size) for size in kernel),
        },
    )


def _per_dim(given: Any, dims: int) -> tuple[int, ...] | str:
    """One number a spatial dim: a single number holds for all of them."""
    if isinstance(given, str):
        return given
    numbers = [given] if isinstance(given, int) else list(given)
    return tuple(numbers * dims if len(numbers) == 1 else numbers)
