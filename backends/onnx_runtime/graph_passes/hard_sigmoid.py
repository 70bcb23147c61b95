"""Clipped lines as HardSigmoid, which ONNX Runtime computes in one kernel and in the layout of convolutions.

Before:  Div(Mul(x, Clip(Add(x, b), 0, d)), d)      After:  Mul(x, HardSigmoid(x, alpha=1/d, beta=b/d))
         Div(Clip(Add(x, b), 0, d), d)                      HardSigmoid(x, alpha=1/d, beta=b/d)
         Clip(Add(Mul(x, a), b), 0, 1)                      HardSigmoid(x, alpha=a, beta=b)
Exact:   up to rounding: a product with 1/d instead of a division by d.
Why:     ONNX Runtime 1.31 leaves its blocked layout before every Clip, Max and Min, and comes back after it.
Source:  ONNX HardSigmoid; Howard et al. 2019, arXiv:1905.02244, eq. 5 (hard swish).
"""

from __future__ import annotations

import math

import onnx_ir as ir


def write_hard_sigmoids(graph: ir.Graph) -> int:
    """Rewrite every place of these forms; how many."""
    return sum(_rewritten(graph, node) for node in list(graph) if node.op_type == "Clip" and not node.domain)


def _rewritten(graph: ir.Graph, clip: ir.Node) -> bool:
    low, high = _number(clip.inputs[1]), _number(clip.inputs[2]) if len(clip.inputs) > 2 else None
    line = clip.inputs[0].producer() if clip.inputs[0] is not None else None
    if low != 0 or not high or line is None or line.op_type != "Add" or clip.inputs[0].dtype != ir.DataType.FLOAT:
        return False
    source, shift = _variable_and_number(line)
    if source is None or shift is None:
        return False
    if high == 1:
        scaled = source.producer()
        if scaled is None or scaled.op_type != "Mul":
            return False
        source, slope = _variable_and_number(scaled)
        if source is None or slope is None:
            return False
        _replace(graph, clip, _hard_sigmoid(graph, clip, source, slope, shift))
        return True
    user = _only_user(clip.outputs[0])
    if user is None:
        return False
    gated = user.op_type == "Mul" and source in user.inputs
    divided = _only_user(user.outputs[0]) if gated else user
    if divided is None or divided.op_type != "Div" or _number(divided.inputs[1]) != high:
        return False
    if divided.inputs[0] not in (clip.outputs[0], user.outputs[0]):
        return False
    gate = _hard_sigmoid(graph, divided, source, 1 / high, shift / high)
    if gated:
        product = ir.Node("", "Mul", [source, gate], name=f"{divided.name}.gated")
        graph.insert_before(divided, product)
        gate = product.outputs[0]
    _replace(graph, divided, gate)
    return True


def _hard_sigmoid(graph: ir.Graph, before: ir.Node, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    attributes = [ir.AttrFloat32("alpha", alpha), ir.AttrFloat32("beta", beta)]
    node = ir.Node("", "HardSigmoid", [x], attributes, name=f"{before.name}.hard_sigmoid")
    node.outputs[0].name = f"{before.outputs[0].name}.gate"
    node.outputs[0].dtype, node.outputs[0].shape = x.dtype, x.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let `value` stand for what `node` gives, under its name."""
    output = node.outputs[0]
    value.shape, value.type = output.shape, output.type
    name, output.name = output.name, f"{output.name}.before"
    value.name = name
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _variable_and_number(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """The operand that is computed and the number beside it, for an operator of two operands."""
    for variable, other in (node.inputs, reversed(node.inputs)):
        number = _number(other)
        if number is not None and variable is not None and _number(variable) is None:
            return variable, number
    return None, None


def _number(value: ir.Value | None) -> float | None:
    """The single number that a stored value holds, or None."""
    tensor = None if value is None else value.const_value
    if tensor is None or math.prod(int(size) for size in tensor.shape) != 1 or tensor.dtype != ir.DataType.FLOAT:
        return None
    return float(tensor.numpy().reshape(()))


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
