from __future__ import annotations

import torch
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.eliminate_dead_code import EliminateDeadCode
from compiler.patterns import aten


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 3, bias=False)
        self.unused = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.used(x), self.unused(x)


def program_with_dead_end():
    program = captured(Linear(), x=torch.randn(2, 3))
    output = program.output_node()
    output.args = (output.args[0][:1],)
    program.outputs = program.outputs[:1]
    program.refresh()
    return program


def test_what_no_output_needs_goes_with_its_weights():
    program = program_with_dead_end()
    assert program.text() == (
        "input %x : float32[batch, 3]\n"
        "%0 = aten.linear(%x, @used.weight) : float32[batch, 3]\n"
        "%1 = aten.linear(%x, @unused.weight) : float32[batch, 3]\n"
        "return (%0)\n"
    )
    after, result = rewritten(EliminateDeadCode(), program)
    assert after.text() == (
        "input %x : float32[batch, 3]\n%0 = aten.linear(%x, @used.weight) : float32[batch, 3]\nreturn (%0)\n"
    )
    assert result.changed == ("unused_weight", "linear_1")
    assert set(after.weights()) == {"used.weight"}
    assert set(program.weights()) == {"used.weight", "unused.weight"}


def test_an_unread_input_stays():
    class First(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + 1

    after, result = rewritten(EliminateDeadCode(), captured(First(), x=torch.randn(2, 3), y=torch.randn(2, 3)))
    assert result.changed == ()
    assert [node.name for node in after.placeholders()] == ["x", "y"]


def test_a_write_in_place_stays():
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            copy = x * 1.5
            copy[:, 0] = 0.0
            return copy

    after, result = rewritten(EliminateDeadCode(), captured(Writes(), x=torch.randn(2, 3)))
    assert result.changed == ()
    assert after.run(torch.ones(2, 3))[0][:, 0].abs().max() == 0


def test_random_numbers_and_their_order_stay():
    program = captured(Linear(), x=torch.randn(2, 3))
    with program.graph.inserting_before(program.output_node()):
        program.graph.call_function(aten.rand.default, ([2],))
    program.refresh()
    after = program.copy()
    result = EliminateDeadCode().rewrite(after, None)
    assert result.changed == ()
