"""Every operator of a model that the table lacks, at once: what to know before anything else is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compiler.frontends import UnsupportedOperator, UnsupportedOperatorsError
from compiler.frontends.onnx_model.node_context import node_name, operator_label, subgraphs
from compiler.frontends.onnx_model.operator_table import find_for, opset_versions

if TYPE_CHECKING:
    import onnx_ir as ir


def require_operators(doing: str, model: ir.Model) -> None:
    """Raise UnsupportedOperatorsError with every operator that the table lacks, its count and its first node."""
    versions = opset_versions(model)
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for node in every_node(model.graph):
        if find_for(node, versions) is None:
            label = operator_label(node)
            counts[label] = counts.get(label, 0) + 1
            first.setdefault(label, node_name(node))
    if counts:
        listed = [UnsupportedOperator(label, counts[label], first[label]) for label in counts]
        listed.sort(key=lambda one: (-one.count, one.operator))
        hint = "Export it with standard operators, or read these by functions under @operator in a --plugin file."
        raise UnsupportedOperatorsError(doing, tuple(listed), hint)


def every_node(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph and of its subgraphs."""
    for node in graph:
        yield node
        for attribute in node.attributes.values():
            for inner in subgraphs(attribute):
                yield from every_node(inner)
