from __future__ import annotations

import pytest
import torch
from rewrite_checks import captured
from torch import Tensor, fx, nn

from compiler.patterns import (
    LAYOUT,
    argument,
    aten,
    constant_fill,
    erase_dead,
    forward_through,
    in_graph_order,
    insert_call,
    is_weight,
    only_user,
    permutation,
    replace,
    same_shape,
    scalar,
    static_size,
    through,
    unpacked_item,
    upstream,
)
from compiler.program import Program


def program_of(forward, *, x: Tensor | None = None) -> Program:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return captured(Module(), x=torch.randn(2, 3, 4) if x is None else x)


def call(program: Program, target: object, position: int = 0) -> fx.Node:
    return [node for node in program.graph.nodes if node.target is target][position]


def test_arguments_are_read_by_name_however_they_are_given():
    program = program_of(lambda self, x: torch.softmax(x, dim=-1) + torch.add(x, x, alpha=2))
    softmax, add = call(program, aten.softmax.int), call(program, aten.add.Tensor)
    assert (argument(softmax, "dim"), argument(softmax, "dtype")) == (-1, None)
    assert argument(add, "alpha") == 2
    assert argument(add, "self").name == "x"
    with pytest.raises(KeyError, match="no argument 'beta'"):
        argument(add, "beta")


def test_layout_is_walked_through_both_ways():
    program = program_of(lambda self, x: torch.relu(x).transpose(1, 2).reshape(-1, 12).contiguous() * 2)
    relu, product = call(program, aten.relu.default), call(program, aten.mul.Tensor)
    assert through(product.args[0], LAYOUT) is relu
    assert only_user(forward_through(relu, LAYOUT)) is product


def test_forward_through_stops_where_there_are_two_readers():
    def forward(self, x: Tensor) -> Tensor:
        turned = torch.relu(x).transpose(1, 2)
        return torch.cos(turned) + torch.sin(turned)

    program = program_of(forward)
    relu = call(program, aten.relu.default)
    assert forward_through(relu, LAYOUT) is call(program, aten.transpose.int)
    assert only_user(call(program, aten.transpose.int)) is None


def test_sizes_are_compared_without_guards():
    program = program_of(lambda self, x: torch.relu(x) + x[:1])
    relu, part = call(program, aten.relu.default), call(program, aten.slice.Tensor)
    assert same_shape(relu, program.placeholders()[0])
    assert not same_shape(relu, part)
    assert (static_size(relu, 0), static_size(relu, -1)) == (None, 4)


@pytest.mark.parametrize(
    ("forward", "order"),
    [
        (lambda self, x: x.transpose(-1, -2), (0, 2, 1)),
        (lambda self, x: x.permute(2, 0, -2), (2, 0, 1)),
        (lambda self, x: x.mT, (0, 2, 1)),
        (lambda self, x: self.weight.t() + x.sum(), (1, 0)),
        (lambda self, x: self.weight.T + x.sum(), (1, 0)),
        (lambda self, x: x.reshape(2, 4, 3), None),
    ],
)
def test_permutations(forward, order: tuple[int, ...] | None):
    program = program_of(forward)
    found = [permutation(node) for node in program.graph.nodes]
    assert [one for one in found if one is not None] == ([] if order is None else [order])


def test_constants_are_known_by_how_they_were_made():
    def forward(self, x: Tensor) -> Tensor:
        return x + x.new_full((1,), 3.0).expand(4) + torch.zeros_like(x) + torch.arange(4)

    program = program_of(forward)
    assert constant_fill(call(program, aten.expand.default)) == 3.0
    assert constant_fill(call(program, aten.zeros_like.default)) == 0.0
    assert constant_fill(call(program, aten.arange.default)) is None
    assert (scalar(2), scalar(True), scalar(program.placeholders()[0])) == (2.0, None, None)


def test_upstream_goes_to_what_stops_it_and_no_further():
    program = program_of(lambda self, x: torch.cos(torch.relu(x) @ self.weight))
    found = list(upstream(call(program, aten.cos.default), lambda node: node.target is aten.relu.default))
    assert [node.name for node in found] == ["cos", "matmul", "relu", "weight"]
    assert is_weight(found[-1])
    assert [node.name for node in in_graph_order(found)] == ["weight", "relu", "matmul", "cos"]


def test_an_inserted_call_knows_its_value_and_module():
    program = program_of(lambda self, x: torch.relu(x))
    relu = call(program, aten.relu.default)
    relu.meta["nn_module_stack"] = {"layer": ("layer", "Layer")}
    added = insert_call(relu, aten.unsqueeze.default, program.placeholders()[0], 0)
    assert [str(size) for size in added.meta["val"].shape] == ["1", *map(str, relu.meta["val"].shape)]
    assert added.meta["nn_module_stack"] == relu.meta["nn_module_stack"]


def test_replacing_drops_what_only_the_old_node_needed():
    program = program_of(lambda self, x: torch.cos(torch.relu(x)))
    cos, x = call(program, aten.cos.default), program.placeholders()[0]
    replace(cos, insert_call(cos, aten.sin.default, x))
    assert [node.name for node in program.graph.nodes] == ["x", "sin_default", "output"]


def test_inputs_and_nodes_that_are_read_are_not_erased():
    program = program_of(lambda self, x: torch.cos(torch.relu(x)))
    for node in program.graph.nodes:
        erase_dead(node)
    assert [node.name for node in program.graph.nodes] == ["x", "relu", "cos", "output"]


def test_items_of_several_results():
    program = program_of(lambda self, x: x.chunk(2, dim=-1)[1])
    item = program.output_node().args[0][0]
    assert unpacked_item(item) == (call(program, aten.chunk.default), 1)
    assert unpacked_item(call(program, aten.chunk.default)) is None
