"""Nodes and initializers that no output needs are removed."""

from __future__ import annotations

import onnx_ir as ir


def remove_dead_nodes(graph: ir.Graph) -> int:
    """Remove what is unused, from the end to the front; the number of nodes removed."""
    removed = 0
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            removed += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return removed
