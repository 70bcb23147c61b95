"""Rewriting ONNX graphs before they are read: the driver, and small tools for rules.

A rule looks at one node and gives the node whose outputs stand in for it, or None. It adds what it needs in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.frontends.onnx_model.node_context import subgraphs

if TYPE_CHECKING:
    import onnx_ir as ir

Rule = Callable[["ir.Node"], "ir.Node | None"]


def rewrite(graph: ir.Graph, rules: Sequence[Rule]) -> None:
    """Apply the first rule that fits to every node of a graph and of its subgraphs, once, and drop what is dead."""
    for node in list(graph):
        for attribute in node.attributes.values():
            for inner in subgraphs(attribute):
                rewrite(inner, rules)
        if node.graph is None:
            continue
        for rule in rules:
            made = rule(node)
            if made is not None:
                _put_in_place(node, made)
                break


def inserted(
    before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None,
    *, domain: str = "", version: int | None = None, like: ir.Node | None = None,
) -> ir.Node:  # fmt: skip
    """A new node of one output in front of another. It has the name and metadata of `like` (None: of `before`)."""
    import onnx_ir as ir

    given = [
        one if isinstance(one, ir.Attr) else ir.convenience.convert_attribute(name, one)
        for name, one in (attributes or {}).items()
    ]
    made = ir.Node(domain, op_type, inputs, given, num_outputs=1, version=version)
    origin = before if like is None else like
    made.name = origin.name
    made.metadata_props.update(origin.metadata_props)
    assert before.graph is not None
    before.graph.insert_before(before, made)
    return made


def stored(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The numbers behind an initializer or a Constant node; None for anything else."""
    import onnx_ir as ir

    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def new_initializer(near: ir.Node, wanted: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """A stored tensor in the graph of a node, under `wanted` or a name like it."""
    import onnx_ir as ir

    graph = near.graph
    assert isinstance(graph, ir.Graph)
    name, count = wanted, 0
    while name in graph.initializers:
        count += 1
        name = f"{wanted}_{count}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _put_in_place(node: ir.Node, made: ir.Node) -> None:
    """Let `made` stand for `node`, and drop what nothing reads any more."""
    import onnx_ir as ir

    for old, new in zip(node.outputs, made.outputs, strict=False):
        name, kind, shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = None
        new.name = name
        new.type = kind if kind is not None else new.type
        new.shape = shape if shape is not None else new.shape
    _remove_dead(node)


def _remove_dead(node: ir.Node) -> None:
    graph = node.graph
    if graph is None or any(out.uses() or out.is_graph_output() for out in node.outputs):
        return
    sources = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in sources:
        producer = value.producer()
        if producer is not None:
            _remove_dead(producer)
        elif value.is_initializer() and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            assert value.graph is not None
            value.graph.initializers.pop(value.name, None)
