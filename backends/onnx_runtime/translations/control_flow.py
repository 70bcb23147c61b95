"""cond and while_loop as ONNX If and Loop. Their graphs see the values around them, so operands need no passing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translate import write_nodes
from compiler.backends.onnx_runtime.translations import translates
from compiler.regions import region_operands, regions_of


@translates("torch.ops.higher_order.cond")
def cond(w: GraphWriter, node: fx.Node, predicate: fx.Node, *_: Any) -> tuple[ir.Value, ...]:
    operands = region_operands(node)
    chosen, otherwise = _regions(node)
    return w.choose(
        w.value(predicate),
        len(node.meta["val"]),
        (f"{node.name}.then", lambda: _written(w, chosen.graph, operands)),
        (f"{node.name}.else", lambda: _written(w, otherwise.graph, operands)),
    )


@translates("torch.ops.higher_order.while_loop")
def while_loop(w: GraphWriter, node: fx.Node, *_: Any) -> tuple[ir.Value, ...]:
    """The test is written twice: before the loop, and at the end of its body."""
    operands = region_operands(node)
    test, step = (region.graph for region in _regions(node))
    carried = [w.tensor(one) for one in node.args[2]]  # type: ignore[union-attr]
    additional = operands[len(carried) :]
    goes_on = _written(w, test, [*carried, *additional])[0]
    with w.body() as nodes:
        iteration = w.body_input("iteration", torch.zeros((), dtype=torch.int64))
        goes_on_now = w.body_input("goes_on", torch.ones((), dtype=torch.bool))
        given = [w.body_input(one.name, one.meta["val"]) for one in _placeholders(step)[: len(carried)]]
        results = _written(w, step, [*given, *additional])
        goes_on_then = _written(w, test, [*results, *additional])[0]
        outputs = w.body_outputs([goes_on_then, *results], nodes)
        body = ir.Graph([iteration, goes_on_now, *given], outputs, nodes=nodes, name=f"{node.name}.body")
    return w.emit_several("Loop", None, goes_on, *carried, outputs=len(carried), body=body)


def _regions(node: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    owner = node.graph.owning_module
    assert owner is not None
    return regions_of(owner, node)


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return list(graph.find_nodes(op="placeholder"))


def _written(w: GraphWriter, graph: fx.Graph, operands: Sequence[Any]) -> list[ir.Value]:
    """What the graph returns for `operands`: values, or what the graph around it has."""
    for placeholder, operand in zip(_placeholders(graph), operands, strict=True):
        if isinstance(operand, fx.Node) and operand.op == "get_attr":
            _read_weight(placeholder, operand)
        elif isinstance(operand, ir.Value):
            w.bind(placeholder, operand)
        else:
            w.bind(placeholder, w.value(operand) if isinstance(operand, fx.Node) else w.size(operand))
    write_nodes(w, graph)
    returned = graph.output_node().args[0]
    return [w.tensor(one) for one in (returned if isinstance(returned, (tuple, list)) else (returned,))]


def _read_weight(placeholder: fx.Node, weight: fx.Node) -> None:
    """Let the region read the weight itself, which translations may rearrange, in the place of its operand."""
    graph = placeholder.graph
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        read = graph.create_node("get_attr", str(weight.target))
    read.meta = dict(weight.meta)
    placeholder.replace_all_uses_with(read)
