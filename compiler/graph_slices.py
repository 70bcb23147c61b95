"""Parts of a graph as graphs of their own: from values that are given to values that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import fx


def nodes_between(wanted: fx.Node, leaves: Collection[fx.Node], most: int | None = None) -> set[fx.Node] | None:
    """The nodes that make `wanted` of `leaves` and stored weights, all included; None where they are more than `most`,
    or where they need an input of the graph that is no leaf.
    """
    found: set[fx.Node] = set()
    waiting = [wanted]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        if (most is not None and len(found) > most) or (one.op == "placeholder" and one not in leaves):
            return None
        if one not in leaves:
            waiting += one.all_input_nodes
    return found


def nodes_on_paths(sources: Collection[fx.Node], wanted: fx.Node) -> set[fx.Node]:
    """The nodes that depend on one of `sources` and that `wanted` depends on, `wanted` included, `sources` not. Empty
    where `wanted` depends on none of them.
    """
    first = min(sources)
    above: set[fx.Node] = set()
    waiting = [wanted]
    while waiting:
        one = waiting.pop()
        if first < one and one not in sources and one not in above:
            above.add(one)
            waiting += one.all_input_nodes
    found: set[fx.Node] = set()
    for one in sorted(above):
        if any(source in sources or source in found for source in one.all_input_nodes):
            found.add(one)
    return found


def graph_slice(
    module: fx.GraphModule, leaves: Sequence[fx.Node], between: Iterable[fx.Node], wanted: Sequence[fx.Node]
) -> fx.GraphModule:
    """A graph from `leaves` to the tuple of `wanted` over the nodes `between` them. Weights are those of `module`."""
    inside = set(between)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {leaf: graph.placeholder(leaf.name) for leaf in leaves}
    for node in module.graph.nodes:
        if node in inside and node not in copies:
            copies[node] = graph.node_copy(node, lambda one: copies[one])
    graph.output(tuple(copies[node] for node in wanted))
    return fx.GraphModule(module, graph, class_name="Slice")
