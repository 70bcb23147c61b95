"""A site cut out of a graph: what has to be kept of the teacher to train its stand-in alone, and what follows from it.

    leaves  --prepare-->  the site's inputs  --stand-in-->  its output  --project-->  where the error is measured

The first input is kept. Of the others, those that a few nodes make of it, of stored weights and of the Program's inputs
are made again (query, key and value of what their projections read; masks; rotary embeddings); the rest is kept too.
The error is measured after the linear layer that reads the output, where there is one: what that layer leaves out does
not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from compiler.graph_slices import graph_slice, nodes_between
from compiler.healing.frozen_graph import FrozenLinear
from compiler.patterns import LAYOUT, forward_through, only_user
from compiler.sites import Site

MOST_NODES_AGAIN, MOST_LINEARS_AGAIN = 160, 4
"""Nodes, and linear layers among them, that are computed again to save keeping a value."""


@dataclass(frozen=True)
class SiteView:
    """The parts of one site. `read` names what `prepare` takes, in order, and `beside` which of the Program's inputs
    `project` takes after the output: their sizes, as a rule.
    """

    name: str
    read: tuple[str, ...]
    output: str
    beside: tuple[str, ...]
    prepare: fx.GraphModule
    project: fx.GraphModule

    def kept(self, placeholders: Iterable[str]) -> set[str]:
        """Names of nodes whose values have to be kept."""
        return {*self.read, self.output} - set(placeholders)


def site_view(module: fx.GraphModule, site: Site) -> SiteView:
    """The view of `site` in `module`, a graph in which its nodes have the names that they have in its own."""
    nodes = {node.name: node for node in module.graph.nodes}
    inputs = [nodes[one.name] for one in site.inputs]
    leaves: list[fx.Node] = list(dict.fromkeys([*_placeholders(module), *inputs[:1]]))
    for one in inputs[1:]:
        made_again = _made_of(one, leaves)
        if made_again is None or sum(_is_linear(module, node) for node in made_again) > MOST_LINEARS_AGAIN:
            leaves.append(one)
    made = _made_of_all(inputs, leaves)
    read = [leaf for leaf in leaves if leaf in made or leaf in inputs]
    output = nodes[site.output.name]
    after = _projection(module, output)
    between = _made_of(after, [*_placeholders(module), output]) or {output}
    beside = [one for one in _placeholders(module) if one in between]
    return SiteView(
        name=site.name,
        read=tuple(leaf.name for leaf in read),
        output=output.name,
        beside=tuple(one.name for one in beside),
        prepare=graph_slice(module, read, made, inputs),
        project=graph_slice(module, [output, *beside], between, [after]),
    )


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return list(module.graph.find_nodes(op="placeholder"))


def _projection(module: fx.GraphModule, output: fx.Node) -> fx.Node:
    """The one linear layer that reads `output`, past changes of layout; otherwise `output`."""
    user = only_user(forward_through(output, LAYOUT))
    follows = user is not None and _is_linear(module, user)
    follows = follows and user is not None and _made_of(user, [*_placeholders(module), output]) is not None
    return user if follows and user is not None else output


def _is_linear(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), FrozenLinear)


def _made_of_all(inputs: Sequence[fx.Node], leaves: Sequence[fx.Node]) -> set[fx.Node]:
    return {one for node in inputs for one in _made_of(node, leaves) or ()}


def _made_of(node: fx.Node, leaves: Sequence[fx.Node]) -> set[fx.Node] | None:
    return nodes_between(node, leaves, MOST_NODES_AGAIN)


def run_slice(module: fx.GraphModule, *values: Tensor) -> tuple[Tensor, ...]:
    """The values that a slice gives."""
    return tuple(module(*values))
