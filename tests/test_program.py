"""Program: copies share weights and not graphs, edits refresh, export keeps dims, and the text is stable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compiler.errors import CompilerError
from compiler.frontends.torch_export import capture
from compiler.program import Program


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


TEXT = """\
input %x : float32[batch, 4]
%0 = aten.linear(%x, @up.weight, @up.bias) : float32[batch, 8]
%1 = aten.relu(%0) : float32[batch, 8]
%2 = aten.linear(%1, @down.weight, @down.bias) : float32[batch, 4]
%3 = aten.add.Tensor(%x, %2) : float32[batch, 4]
return (%3)
"""


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return capture(Residual(), {"x": torch.randn(2, 4)}, source="residual")


def test_text(program: Program) -> None:
    assert program.text() == TEXT


def test_a_copy_has_its_own_graph_and_the_same_weights(program: Program) -> None:
    copy = program.copy()
    relu = next(n for n in copy.graph.nodes if n.target is torch.ops.aten.relu.default)
    relu.target = torch.ops.aten.tanh.default
    copy.refresh()
    assert program.text() == TEXT
    assert "aten.tanh" in copy.text()
    assert all(copy.weights()[name] is tensor for name, tensor in program.weights().items())


def test_refresh_computes_shapes_and_drops_unused_weights(program: Program) -> None:
    down = [n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default][1]
    down.replace_all_uses_with(down.args[0].args[0])
    program.graph.eliminate_dead_code()
    add = next(n for n in program.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    add.args = (add.args[1], add.args[1])
    program.refresh()
    assert "%1 = aten.add.Tensor(%0, %0) : float32[batch, 8]" in program.text()
    assert set(program.weights()) == {"up.weight", "up.bias"}
    assert not hasattr(program.graph_module, "down")


def test_flattening_traces_an_inserted_module(program: Program) -> None:
    expected = program.run(torch.ones(3, 4))
    relu = next(n for n in program.graph.nodes if n.target is torch.ops.aten.relu.default)
    program.graph_module.add_submodule("act.inner", nn.Sequential(nn.ReLU(), nn.ReLU()))
    with program.graph.inserting_before(relu):
        call = program.graph.call_module("act.inner", (relu.args[0],))
    relu.replace_all_uses_with(call)
    program.graph.eliminate_dead_code()
    program.refresh()
    flat = program.flattened()
    assert all(node.op != "call_module" for node in flat.graph.nodes)
    assert flat.text().count("aten.relu") == 2
    torch.testing.assert_close(flat.run(torch.ones(3, 4)), expected, rtol=0, atol=0)
    assert [str(spec) for spec in flat.inputs] == ["x: float32[batch, 4]"]


def test_export_refuses_to_lose_a_dynamic_dim(program: Program) -> None:
    add = next(n for n in program.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    with program.graph.inserting_after(add):
        fixed = program.graph.call_function(torch.ops.aten.view.default, (add, [2, 4]))
    program.output_node().args = ((fixed,),)
    program.graph_module.recompile()
    with pytest.raises(CompilerError, match="batch became 2"):
        program.export()


def test_weights_are_set_by_dotted_name(program: Program) -> None:
    program.set_weight("new.place.table", torch.arange(3))
    program.set_weight("new.place.scale", torch.ones(2))
    assert program.weight("new.place.table").tolist() == [0, 1, 2]
    assert isinstance(program.weight("new.place.scale"), nn.Parameter)
    assert program.free_name("new.place.table") == "new.place.table_1"
    assert program.free_name("new.other") == "new.other"
