from __future__ import annotations

import torch
from torch import Tensor, fx

from compiler.aliasing import make_functional, mutates, shares_storage_with, written_values
from compiler.patterns import aten


def graph_of(build) -> dict[str, fx.Node]:
    """A graph that `build` writes by hand, its nodes by name."""
    graph = fx.Graph()
    graph.output((build(graph, graph.placeholder("x")),))
    for node in graph.nodes:
        if node.op != "output":
            node.meta["val"] = torch.empty(2, 3)
    return {node.name: node for node in graph.nodes}


def call(graph: fx.Graph, target, *args) -> fx.Node:
    return graph.call_function(target, args)


def names(nodes) -> set[str]:
    return {node.name for node in nodes}


def test_views_share_storage_and_products_do_not():
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        product = call(graph, aten.mul.Tensor, x, 2)
        view = call(graph, aten.view.default, product, [3, 2])
        dropped = call(graph, aten.dropout.default, view, 0.1, False)
        return call(graph, aten.cos.default, dropped)

    nodes = graph_of(build)
    shared = {name: names(shares_storage_with(node)) for name, node in nodes.items() if node.op == "call_function"}
    assert shared == {"mul_tensor": set(), "view_default": {"mul_tensor"}, "dropout_default": {"view_default"}} | {
        "cos_default": set()
    }


def test_a_write_marks_every_alias_and_nothing_else():
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        product = call(graph, aten.mul.Tensor, x, 2)
        row = call(graph, aten.select.int, product, 0, 0)
        call(graph, aten.add_.Tensor, row, 1)
        return call(graph, aten.cos.default, product)

    nodes = graph_of(build)
    assert mutates(nodes["add__tensor"])
    written = names(written_values(nodes["x"].graph))
    assert written == {"mul_tensor", "select_int", "add__tensor"}
    assert make_functional(nodes["x"].graph) == []


def test_a_write_that_a_later_reader_sees_stays():
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        product = call(graph, aten.mul.Tensor, x, 2)
        call(graph, aten.add_.Tensor, product, 1)
        return call(graph, aten.cos.default, product)

    assert make_functional(graph_of(build)["x"].graph) == []


def test_a_write_to_an_input_stays():
    nodes = graph_of(lambda graph, x: call(graph, aten.add_.Tensor, x, 1))
    assert make_functional(nodes["x"].graph) == []
    assert names(written_values(nodes["x"].graph)) == {"x", "add__tensor"}


def test_a_write_after_every_other_reader_becomes_functional():
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        product = call(graph, aten.mul.Tensor, x, 2)
        total = call(graph, aten.sum.default, product)
        return call(graph, aten.div_.Tensor, product, total)

    nodes = graph_of(build)
    graph = nodes["x"].graph
    assert make_functional(graph) == ["div__tensor"]
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [
        aten.mul.Tensor,
        aten.sum.default,
        aten.div.Tensor,
    ]
    x = torch.randn(2, 3)
    (found,) = fx.GraphModule({}, graph)(x)
    assert torch.equal(found, (x * 2) / (x * 2).sum())


def test_nothing_is_marked_where_nothing_writes():
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return call(graph, aten.view.default, x, [3, 2])

    assert written_values(graph_of(build)["x"].graph) == set()


def test_reading_strides_marks_what_is_read():
    def build(graph: fx.Graph, x: fx.Node) -> Tensor:
        return call(graph, aten.as_strided.default, call(graph, aten.contiguous.default, x), [2], [1])

    written = names(written_values(graph_of(build)["x"].graph))
    assert {"contiguous_default", "as_strided_default"} <= written
