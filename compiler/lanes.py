"""Several batches on their way through one graph, in step: node by node, letting go of what nothing reads any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

if TYPE_CHECKING:
    from compiler.program import Program


class Lane(fx.Interpreter):
    """One batch on its way through the graph; `env` holds the values that are still to be read."""

    def __init__(self, program: Program, inputs: Iterable[Tensor]) -> None:
        super().__init__(program.graph_module)
        self.args_iter = iter(inputs)
        self.env: dict[fx.Node, Any]

    def pass_node(self, node: fx.Node, dead: Iterable[fx.Node]) -> None:
        """Compute `node`, then let go of `dead`."""
        self.env[node] = self.run_node(node)
        self.let_go(dead)

    def let_go(self, dead: Iterable[fx.Node]) -> None:
        """Forget the values of `dead`."""
        for one in dead:
            self.env.pop(one, None)


def dead_after(
    nodes: Sequence[fx.Node], also_read: Mapping[fx.Node, Iterable[fx.Node]] | None = None
) -> dict[fx.Node, list[fx.Node]]:
    """By node, the values of which it is the last reader. What no node of `nodes` reads is let go at once.

    `also_read` has further nodes that one reads, besides its arguments.
    """
    known = set(nodes)
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for read in (*node.all_input_nodes, *(also_read or {}).get(node, ())):
            last[read] = node
    dead: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node, reader in last.items():
        if node in known:
            dead[reader].append(node)
    return dead
