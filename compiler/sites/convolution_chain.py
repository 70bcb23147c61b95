"""Convolution chains: convolutions one behind the other whose channels in between nothing else reads.

    conv -> batch norm, activation, pooling, depthwise conv -> conv -> ... -> conv

Inputs:    x [batch, channels, *spatial] of the first convolution.      Output: what the last one gives.
Bindings:  layers (names of the nodes of the convolutions that mix channels, in order), weight (of the last one),
           channels (how many there are behind each of them but the last).
Refuses:   convolutions that are no sites. A value that two nodes read ends a chain, as at residual sums.
"""

from __future__ import annotations

import torch
from torch import fx

from compiler.patterns import COPIES, aten, has_tensor, in_graph_order, is_call, is_weight, only_user, value
from compiler.sites.activations import ELEMENTWISE
from compiler.sites.convolution import match_convolution
from compiler.sites.names import refusal, shared_path
from compiler.sites.norm import BATCH_NORMS
from compiler.sites.site import Refusal, Site

KIND = "convolution-chain"
POOLS = frozenset(
    {
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
    }
)


def match_convolution_chain(node: fx.Node) -> Site | Refusal | None:
    """The chain whose last convolution is `node`, a refusal, or None where there is no chain or it goes on."""
    last = match_convolution(node)
    if not isinstance(last, Site) or is_depthwise(node):
        return None
    behind = _next_layer(node)
    if behind is not None and isinstance(match_convolution(behind), Site):
        return None
    layers, nodes = [last], [node]
    while (found := _layer_before(layers[0])) is not None:
        before, between = found
        layers.insert(0, before)
        nodes += [*between, before.output]
    if len(layers) == 1:
        return None
    if any(layer.bindings["groups"] != 1 for layer in layers):
        return refusal(KIND, "a convolution in it has groups of channels", node, last.bindings["weight"])
    shared = shared_path([layer.name for layer in layers])
    return Site(
        kind=KIND,
        name=shared or f"{layers[0].name}..{last.name}",
        nodes=in_graph_order(nodes),
        inputs=layers[0].inputs,
        output=node,
        bindings={
            "layers": tuple(layer.output.name for layer in layers),
            "weight": last.bindings["weight"],
            "channels": tuple(layer.bindings["out_channels"] for layer in layers[:-1]),
        },
    )


def is_depthwise(node: fx.Node) -> bool:
    """Whether `node` is a convolution that gives each channel of its input one of its own."""
    site = match_convolution(node)
    if not isinstance(site, Site):
        return False
    sizes = site.bindings
    return bool(sizes["groups"] > 1 and sizes["groups"] == sizes["in_channels"] == sizes["out_channels"])


def is_pointwise(node: fx.Node) -> bool:
    """Whether `node` computes every number of its result from the numbers at the same place of its operands."""
    return is_call(node, *ELEMENTWISE) or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _keeps_channels(node: fx.Node) -> bool:
    """Whether each channel that `node` gives is made of the same channel of its one activation."""
    if is_call(node, *BATCH_NORMS, *POOLS, *COPIES) or is_depthwise(node):
        return True
    return is_pointwise(node) and sum(has_tensor(one) and not is_weight(one) for one in node.all_input_nodes) == 1


def _activation(node: fx.Node) -> fx.Node | None:
    """The one value that `node` keeps the channels of."""
    if not _keeps_channels(node):
        return None
    values = [one for one in node.all_input_nodes if has_tensor(one) and not is_weight(one)]
    return values[0] if len(values) == 1 and value(node).dim() == value(values[0]).dim() else None


def _layer_before(layer: Site) -> tuple[Site, list[fx.Node]] | None:
    """The convolution that alone gives what `layer` reads, and the nodes between."""
    node = layer.inputs[0]
    between: list[fx.Node] = []
    while only_user(node) is not None:
        if not is_depthwise(node) and isinstance(site := match_convolution(node), Site):
            return site, between
        source = _activation(node)
        if source is None:
            return None
        between.append(node)
        node = source
    return None


def _next_layer(node: fx.Node) -> fx.Node | None:
    """What alone reads `node` or what is made of it channel by channel."""
    user = only_user(node)
    while user is not None and _activation(user) is not None:
        user = only_user(user)
    return user
