"""Convolution chains: convolutions one behind the other whose channels in between nothing else reads.

    conv -> batch norm, activation, pooling, depthwise conv, squeeze and excitation -> conv -> ... -> conv

Inputs:    x [batch, channels, *spatial] of the first convolution.      Output: what the last one gives.
Bindings:  layers (names of the nodes of the convolutions that mix channels, in order), weight (of the last one),
           channels (how many there are behind each of them but the last), gates (behind each of them but the last, the
           names of the two convolutions of each gate: what squeezes its channels, and what gives a factor for each).
Refuses:   convolutions that are no sites. A value that something else reads ends a chain, as at residual sums.
Source:    Hu et al. 2017, arXiv:1709.01507 (squeeze and excitation).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from compiler.patterns import in_graph_order, static_size, value
from compiler.sites.channel_groups import channel_group, mixing_convolution
from compiler.sites.names import refusal, shared_path
from compiler.sites.site import Refusal, Site

KIND = "convolution-chain"


@dataclass(frozen=True)
class _Link:
    """Two convolutions of a chain, the gates on the channels between them (squeeze, excite), and the nodes there."""

    first: Site
    second: Site
    gates: tuple[tuple[Site, Site], ...]
    nodes: tuple[fx.Node, ...]


def match_convolution_chain(node: fx.Node) -> Site | Refusal | None:
    """The chain whose last convolution is `node`, a refusal, or None where there is no chain or it goes on."""
    last = mixing_convolution(node)
    if last is None or _goes_on(node):
        return None
    links: list[_Link] = []
    first = last
    while (link := _link(first.inputs[0])) is not None and link.second.output is first.output:
        links.insert(0, link)
        first = link.first
    if not links:
        return None
    layers = [first, *(link.second for link in links)]
    gates = [layer for link in links for gate in link.gates for layer in gate]
    if any(layer.bindings["groups"] != 1 for layer in (*layers, *gates)):
        return refusal(KIND, "a convolution in it has groups of channels", node, last.bindings["weight"])
    between = [inner for link in links for inner in link.nodes]
    return Site(
        kind=KIND,
        name=shared_path([layer.name for layer in layers]) or f"{first.name}..{last.name}",
        nodes=in_graph_order([*between, *(layer.output for layer in (*layers, *gates))]),
        inputs=first.inputs,
        output=node,
        bindings={
            "layers": tuple(layer.output.name for layer in layers),
            "weight": last.bindings["weight"],
            "channels": tuple(layer.bindings["out_channels"] for layer in layers[:-1]),
            "gates": tuple(tuple((one.output.name, two.output.name) for one, two in link.gates) for link in links),
        },
    )


def _goes_on(node: fx.Node) -> bool:
    """Whether a chain goes on behind the convolution `node`, or it is a part of a gate."""
    link = _link(node)
    return link is not None and node in (link.first.output, *(excite.output for _, excite in link.gates))


def _link(channels: fx.Node) -> _Link | None:
    """The two convolutions that the channels of a value lie between, if all others that see them are gates."""
    group = channel_group(channels)
    if group is None or not group.givers or not group.readers:
        return None
    first, *excites = group.givers
    *squeezes, second = group.readers
    left = {squeeze.output: squeeze for squeeze in squeezes}
    gates, nodes = [], [*group.between]
    for excite in excites:
        inner = channel_group(excite.inputs[0]) if _gives_one_place(excite) else None
        if inner is None or len(inner.givers) != 1 or len(inner.readers) != 1:
            return None
        squeeze = left.pop(inner.givers[0].output, None)
        if squeeze is None:
            return None
        gates.append((squeeze, excite))
        nodes += inner.between
    return None if left else _Link(first, second, tuple(gates), tuple(nodes))


def _gives_one_place(layer: Site) -> bool:
    """Whether a convolution gives one number a channel, as a gate does and a residual branch does not."""
    return all(static_size(layer.output, dim) == 1 for dim in range(2, value(layer.output).dim()))
