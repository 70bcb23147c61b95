"""Residual layers: x + f(x), where f has layers with weights; one behind the other in one module count as one.

    plain       carrier -> ... -> add(carrier, branch)
    post-norm   carrier -> ... -> norm(add(carrier, branch)), where the carrier is a norm's output itself

Inputs:    the carrier x.      Output: of the same shape; x itself may stand in for it.
Bindings:  branches (how many sums), weights (dotted names of what the layers inside read).
Refuses:   nothing: what is no such sum is no site.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from compiler.graph_slices import nodes_on_paths
from compiler.patterns import (
    argument,
    aten,
    has_tensor,
    is_call,
    only_user,
    operands,
    same_shape,
    value,
)
from compiler.sites.convolution import match_convolution
from compiler.sites.linear import match_linear
from compiler.sites.names import shared_path
from compiler.sites.norm import match_norm
from compiler.sites.site import Refusal, Site

KIND = "residual-layer"


@dataclass(frozen=True)
class _Branch:
    """One sum, the value that it is added to, and the sites of layers on the way."""

    carrier: fx.Node
    output: fx.Node
    nodes: frozenset[fx.Node]
    layers: tuple[Site, ...]

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]


def match_residual_layer(node: fx.Node) -> Site | Refusal | None:
    """The residual layer that ends at `node`, or None."""
    last = _branch(node)
    if last is None or any(_same_layer(last, after) for after in _branches_from(last.output)):
        return None
    branches = [last]
    while (before := _branch(branches[0].carrier)) is not None and _same_layer(before, branches[0]):
        branches.insert(0, before)
    layers = [layer for branch in branches for layer in branch.layers]
    names = [layer.name for layer in layers]
    return Site(
        kind=KIND,
        name=_layer_path(names) or shared_path(names) or names[0],
        nodes=tuple(sorted({node for branch in branches for node in branch.nodes})),
        inputs=(branches[0].carrier,),
        output=node,
        bindings={
            "branches": len(branches),
            "weights": tuple(str(layer.bindings["weight"]) for layer in layers),
        },
    )


def _branch(output: fx.Node) -> _Branch | None:
    """The one branch that ends at `output`."""
    norm = match_norm(output)
    if isinstance(norm, Site) and norm.output is output:
        start = norm.inputs[0]
        found = _sum(start) if only_user(start) is not None else None
        if found is None or not isinstance(match_norm(found.carrier), Site):
            return None
        return _Branch(found.carrier, output, found.nodes | {*norm.nodes}, found.layers)
    found = _sum(output)
    if found is None:
        return None
    user = only_user(output)
    ends_in_norm = user is not None and isinstance(match_norm(user), Site)
    return None if ends_in_norm and isinstance(match_norm(found.carrier), Site) else found


def _sum(node: fx.Node) -> _Branch | None:
    """x + f(x) at `node`, where f has layers."""
    if not is_call(node, aten.add.Tensor) or argument(node, "alpha") != 1:
        return None
    terms = operands(node)[:2]
    if not all(has_tensor(term) and same_shape(term, node) for term in terms):
        return None
    for carrier, branch in (terms, terms[::-1]):
        nodes = nodes_on_paths([carrier], branch)
        layers = tuple(site for one in sorted(nodes) if (site := _layer(one)) is not None)
        if layers and value(carrier).dtype == value(node).dtype:
            return _Branch(carrier, node, frozenset({*nodes, node}), layers)
    return None


def _layer(node: fx.Node) -> Site | None:
    match = match_linear(node) or match_convolution(node)
    return match if isinstance(match, Site) else None


def _branches_from(carrier: fx.Node) -> list[_Branch]:
    """The branches that start at `carrier`."""
    ends = [user for user in carrier.users if is_call(user, aten.add.Tensor)]
    ends += [end for user in ends if (end := only_user(user)) is not None]
    found = [_branch(end) for end in ends]
    return [one for one in found if one is not None and one.carrier is carrier]


def _same_layer(one: _Branch, other: _Branch) -> bool:
    """Whether two branches stand in one numbered module."""
    return bool(_layer_path([*one.names, *other.names]))


def _layer_path(names: list[str]) -> str:
    """The numbered module that holds all of `names`, as `layers.3`."""
    shared = shared_path(names)
    return shared if shared.rpartition(".")[2].isdecimal() else ""
