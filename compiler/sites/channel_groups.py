"""Channels that several convolutions share: which give them, which read them, and the nodes between.

    conv -> batch norm, activation, depthwise conv -> x ------------------> x * gate -> conv
                                                      \\-> pool -> conv -> relu -> conv -> sigmoid

Channel c of a convolution's output stays channel c through what works on each channel alone, also where two such values
meet. So it can only go everywhere at once: the channels above are given by two convolutions and read by two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from compiler.patterns import (
    COPIES,
    LAYOUT,
    argument,
    aten,
    has_tensor,
    in_graph_order,
    is_call,
    is_weight,
    static_size,
    through,
    value,
)
from compiler.sites.activations import ELEMENTWISE
from compiler.sites.convolution import match_convolution
from compiler.sites.norm import BATCH_NORMS
from compiler.sites.site import Site

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
MOST_NODES = 256
"""Where channels go through more nodes than that, they are those of a whole network's residual sums."""


@dataclass(frozen=True)
class ChannelGroup:
    """Convolutions that give the channels, those that read them, and the nodes between, each in graph order."""

    givers: tuple[Site, ...]
    readers: tuple[Site, ...]
    between: tuple[fx.Node, ...]


def channel_group(seed: fx.Node) -> ChannelGroup | None:
    """All that the channels (dim 1) of `seed` go through; None where anything but convolutions gives or reads them."""
    count = static_size(seed, 1) if has_tensor(seed) and value(seed).dim() > 2 else None
    givers: dict[fx.Node, Site] = {}
    readers: dict[fx.Node, Site] = {}
    between: set[fx.Node] = set()
    waiting = [seed]
    while waiting:
        node = waiting.pop()
        if node in givers or node in between:
            continue
        if count is None or not _has_channels(node, count) or len(between) > MOST_NODES:
            return None
        if (layer := mixing_convolution(node)) is not None:
            givers[node] = layer
        elif (sources := _channel_sources(node)) is not None:
            between.add(node)
            waiting += sources
        else:
            return None
        for user in node.users:
            if (reader := mixing_convolution(user)) is not None:
                readers[user] = reader
            else:
                waiting.append(user)
    return ChannelGroup(
        tuple(givers[node] for node in in_graph_order(givers)),
        tuple(readers[node] for node in in_graph_order(readers)),
        in_graph_order(between),
    )


def mixing_convolution(node: fx.Node) -> Site | None:
    """The site at `node` if it is a convolution whose outputs depend on several channels."""
    site = match_convolution(node)
    return site if isinstance(site, Site) and not is_depthwise(node) else None


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


def _has_channels(node: fx.Node, count: int) -> bool:
    return has_tensor(node) and value(node).dim() > 2 and static_size(node, 1) == count


def _channel_sources(node: fx.Node) -> list[fx.Node] | None:
    """The values whose channels those of `node` are made of, one by one; None where they are made in another way."""
    values = [one for one in node.all_input_nodes if has_tensor(one) and not is_weight(through(one, LAYOUT))]
    if any(value(one).dim() != value(node).dim() for one in values):
        return None
    if is_pointwise(node):
        return values or None
    alone = is_call(node, *BATCH_NORMS, *POOLS, *COPIES) or is_depthwise(node) or _is_mean_of_places(node)
    return values if alone and len(values) == 1 else None


def _is_mean_of_places(node: fx.Node) -> bool:
    if not is_call(node, aten.mean.dim) or not argument(node, "keepdim"):
        return False
    rank = value(node).dim()
    return all(dim % rank > 1 for dim in argument(node, "dim") or (0,))
