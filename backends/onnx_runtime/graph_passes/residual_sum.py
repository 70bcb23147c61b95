"""The addition in front of a layer norm as Sum, which ONNX Runtime leaves alone.

Before:  LayerNormalization(Add(x, y))      After:  LayerNormalization(Sum(x, y))
Exact:   the same numbers.
Why:     ONNX Runtime 1.31 turns the first form into com.microsoft SkipLayerNormalization, whose CPU kernel takes
         five times as long as the two it replaces: 0.43 ms against 0.08 ms for 128 tokens of 384.
"""

from __future__ import annotations

import onnx_ir as ir

NORMS = ("LayerNormalization", "RMSNormalization")


def write_residuals_as_sum(graph: ir.Graph) -> int:
    """Rewrite every addition of two computed values that a norm reads; how many."""
    changed = 0
    for node in list(graph):
        if node.op_type != "Add" or node.domain or not _read_by_norm(node) or not _both_computed(node):
            continue
        output = node.outputs[0]
        total = ir.Value(name=output.name, shape=output.shape, type=output.type)
        output.name = f"{output.name}.added"
        graph.insert_before(node, ir.Node("", "Sum", list(node.inputs), outputs=[total], name=node.name))
        output.replace_all_uses_with(total, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        changed += 1
    return changed


def _read_by_norm(node: ir.Node) -> bool:
    return any(user.op_type in NORMS and user.inputs[0] is node.outputs[0] for user in node.outputs[0].consumers())


def _both_computed(node: ir.Node) -> bool:
    """A bias stays an Add, which the product in front of it takes in."""
    return all(value is not None and not value.is_initializer() and _is_full(value) for value in node.inputs)


def _is_full(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and value.shape is not None and len(value.shape) >= 2
