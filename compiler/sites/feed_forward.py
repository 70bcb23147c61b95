"""Feed-forward sites: two linear layers with an activation between, three where one gates another, and experts.

    plain    down(activation(up(x)))
    gated    down(activation(gate(x)) * up(x)), where gate and up may be halves of one linear layer
    experts  the same with one weight an expert [experts, ...], over rows of tokens that a router has given an expert

Inputs:    x [..., hidden_size]; for experts the tokens [rows, hidden_size] and their routing: where the rows of each
           expert end [experts], or the expert of each row [rows].
Output:    the shape of x.
Bindings:  form ("plain" | "gated" | "experts"), activation (a name of `activations.KNOWN`, or "unknown"), hidden_size,
           intermediate_size, up, gate, down (weights' dotted names; gate is None when plain), up_bias, gate_bias,
           down_bias, up_rows, gate_rows (which outputs of the layer, for halves of one), weight_transposed;
           expert_count and routed_by ("ends" | "ids") for experts.
Refuses:   another output width than input width; a hidden value that something else reads; branches that are not
           multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from compiler.patterns import (
    RESHAPES,
    argument,
    aten,
    constant_fill,
    has_tensor,
    in_graph_order,
    is_call,
    operands,
    through,
    unpacked_item,
    value,
)
from compiler.sites.activations import ELEMENTWISE, NONLINEAR, activation_name, evaluate, probe_points
from compiler.sites.experts import read_experts_product
from compiler.sites.linear import match_linear
from compiler.sites.names import block_name, module_path, refusal
from compiler.sites.site import Refusal, Site


@dataclass(frozen=True)
class _Branch:
    """A layer's output, or the part [start, stop) of it, that reaches the activation as `node`."""

    node: fx.Node
    layer: fx.Node
    start: int
    stop: int
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class _Hidden:
    """The elementwise nodes that make the hidden value, and the branches they start from."""

    output: fx.Node
    nodes: tuple[fx.Node, ...]
    constants: tuple[fx.Node, ...]
    branches: tuple[_Branch, ...]
    strangers: tuple[fx.Node, ...]


def match_feed_forward(node: fx.Node) -> Site | Refusal | None:
    """The feed-forward site whose last layer is `node`, a refusal, or None."""
    if not _is_layer(node):
        return None
    source = _source(node)
    hidden = _read_hidden(through(source, RESHAPES))
    if hidden is None:
        return None
    reason = _near_miss(node, hidden, source)
    if reason is not None:
        return refusal("feed-forward", *reason)
    gate_up = _gate_and_up(hidden)
    if gate_up is None:
        return refusal("feed-forward", "the two branches are not an activation times the other", hidden.output)
    gate, up, activation = gate_up
    if is_call(node, aten.linear.default):
        return _site(node, hidden, gate, up, activation)
    return _experts_site(node, hidden, gate, up, activation)


def _is_layer(node: Any) -> bool:
    return is_call(node, aten.linear.default) or read_experts_product(node) is not None


def _source(layer: fx.Node) -> fx.Node:
    """What a layer multiplies with its weight."""
    experts = read_experts_product(layer)
    return operands(layer)[0] if experts is None else experts.tokens


def _read_hidden(output: fx.Node) -> _Hidden | None:
    """The elementwise nodes up to the layers that feed them; None when there is no activation or no layer."""
    nodes, constants, branches, strangers = [], [], [], []
    waiting, seen = [output], {output}
    while waiting:
        node = waiting.pop()
        if is_call(node, *ELEMENTWISE):
            nodes.append(node)
            sources = [source for source in node.all_input_nodes if source not in seen]
            seen.update(sources)
            waiting += sources
        elif (branch := _branch(node)) is not None:
            branches.append(branch)
        elif has_tensor(node) and constant_fill(node) is not None:
            constants.append(node)
        else:
            strangers.append(node)
    if not branches or not any(is_call(node, *NONLINEAR) for node in nodes):
        return None
    return _Hidden(output, in_graph_order(nodes), tuple(constants), tuple(branches), tuple(strangers))


def _branch(node: fx.Node) -> _Branch | None:
    """`node` as a layer's output or part of its last dim."""
    if _is_layer(node):
        return _Branch(node, node, 0, int(value(node).shape[-1]), (node,))
    if is_call(node, aten.slice.Tensor):
        layer = operands(node)[0]
        if _is_last_dim(node, layer) and argument(node, "step") == 1 and _is_layer(layer):
            start = argument(node, "start") or 0
            return _Branch(node, layer, start, start + int(value(node).shape[-1]), (layer, node))
        return None
    item = unpacked_item(node)
    if item is None or not is_call(item[0], aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default):
        return None
    producer, position = item
    layer = operands(producer)[0]
    if not _is_layer(layer) or not _is_last_dim(producer, layer):
        return None
    widths = [int(part.shape[-1]) for part in producer.meta["val"]]
    start = sum(widths[:position])
    return _Branch(node, layer, start, start + widths[position], (layer, producer, node))


def _is_last_dim(node: fx.Node, source: fx.Node) -> bool:
    rank = value(source).dim()
    return bool(argument(node, "dim") % rank == rank - 1)


def _near_miss(down: fx.Node, hidden: _Hidden, source: fx.Node) -> tuple[str, fx.Node] | None:
    """Why this is no feed-forward after all, and where."""
    if hidden.strangers:
        return f"the hidden value also depends on {hidden.strangers[0].name}", hidden.strangers[0]
    if source is not hidden.output:
        return "the hidden value is reshaped before the last layer; run canonicalize first", source
    if len(hidden.branches) > 2:
        return f"{len(hidden.branches)} linear layers meet in the hidden value", hidden.output
    inside = {*hidden.nodes, *(node for branch in hidden.branches for node in branch.nodes)}
    experts = read_experts_product(down)
    last = {down} if experts is None else set(experts.nodes)
    for node in in_graph_order(inside):
        if any(user not in inside and user not in last for user in node.users):
            return f"{node.name} is read elsewhere too", node
    if len({_source(branch.layer) for branch in hidden.branches}) > 1:
        return "the branches have different inputs", hidden.output
    width_in, width_out = value(_source(hidden.branches[0].layer)).shape[-1], value(down).shape[-1]
    if width_in != width_out:
        return f"{width_in} features go in and {width_out} come out", down
    return None


def _gate_and_up(hidden: _Hidden) -> tuple[_Branch | None, _Branch, str] | None:
    """The branch that is activated, the one it multiplies, and the activation's name; no gate for one branch."""
    points = probe_points()
    constants = {node: torch.tensor(constant_fill(node), dtype=points.dtype) for node in hidden.constants}

    def result(*values: torch.Tensor) -> torch.Tensor:
        given = {branch.node: one for branch, one in zip(branches, values, strict=True)}
        return evaluate(hidden.nodes, hidden.output, {**constants, **given})

    branches: Sequence[_Branch] = hidden.branches
    if len(branches) == 1:
        return None, branches[0], activation_name(result(points))
    for branches in (hidden.branches, hidden.branches[::-1]):
        activated, factor = result(points, torch.ones_like(points)), points.flip(0) + 0.5
        curved = not torch.allclose(activated, points * activated[-1] / points[-1])
        if curved and torch.allclose(result(points, factor), activated * factor):
            return branches[0], branches[1], activation_name(activated)
    return None


def _site(down: fx.Node, hidden: _Hidden, gate: _Branch | None, up: _Branch, activation: str) -> Site | Refusal:
    parts = {"up": match_linear(up.layer), "down": match_linear(down)}
    if gate is not None:
        parts["gate"] = match_linear(gate.layer)
    layers: dict[str, Site] = {}
    for role, part in parts.items():
        if not isinstance(part, Site):
            reason = part.reason if part is not None else "it is no linear layer"
            return refusal("feed-forward", f"{role}: {reason}", down)
        layers[role] = part
    bindings: dict[str, Any] = {"form": "plain" if gate is None else "gated", "activation": activation}
    bindings |= {"hidden_size": layers["down"].bindings["out_features"], "intermediate_size": up.stop - up.start}
    for role, branch in (("up", up), ("gate", gate), ("down", None)):
        layer = layers.get(role)
        bindings[role] = layer.bindings["weight"] if layer else None
        bindings[f"{role}_bias"] = layer.bindings["bias"] if layer else None
        if role != "down":
            bindings[f"{role}_rows"] = (branch.start, branch.stop) if branch else None
    bindings["weight_transposed"] = layers["down"].bindings["weight_transposed"]
    nodes = [node for layer in layers.values() for node in layer.nodes]
    nodes += [*hidden.nodes, *(node for branch in hidden.branches for node in branch.nodes)]
    name = block_name([layer.name for layer in layers.values()], "", "feed_forward")
    return Site("feed-forward", name, in_graph_order(nodes), (operands(up.layer)[0],), down, bindings)


def _experts_site(down: fx.Node, hidden: _Hidden, gate: _Branch | None, up: _Branch, activation: str) -> Site | Refusal:
    """One site for all experts of a layer: their weights are stacked in one tensor."""
    first, last = read_experts_product(up.layer), read_experts_product(down)
    up_weight = None if first is None else first.stored_weight
    down_weight = None if last is None else last.stored_weight
    if first is None or last is None or up_weight is None or down_weight is None or first.routing is not last.routing:
        return refusal("feed-forward", "the experts' weights are not stored, or their tokens are grouped anew", down)
    nodes = [*hidden.nodes, *(node for branch in hidden.branches for node in branch.nodes), *first.nodes, *last.nodes]
    bindings = {
        "form": "experts",
        "activation": activation,
        "hidden_size": int(value(down).shape[-1]),
        "intermediate_size": up.stop - up.start,
        "expert_count": int(value(down_weight).shape[0]),
        "routed_by": first.routed_by,
        "up": str(up_weight.target),
        "gate": None if gate is None else str(up_weight.target),
        "down": str(down_weight.target),
        "up_rows": (up.start, up.stop),
        "gate_rows": None if gate is None else (gate.start, gate.stop),
        "weight_transposed": last.weight_transposed,
    }
    name = module_path(down) or str(down_weight.target)
    return Site("feed-forward", name, in_graph_order(nodes), (first.tokens, first.routing), down, bindings)
