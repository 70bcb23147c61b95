from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x)) + torch.relu(self.linear(x))


def test_a_repeated_chain_is_computed_once():
    program = captured(Twice(), x=torch.randn(2, 3))
    assert program.text() == (
        "input %x : float32[batch, 3]\n"
        "%0 = aten.linear(%x, @linear.weight, @linear.bias) : float32[batch, 3]\n"
        "%1 = aten.relu(%0) : float32[batch, 3]\n"
        "%2 = aten.linear(%x, @linear.weight, @linear.bias) : float32[batch, 3]\n"
        "%3 = aten.relu(%2) : float32[batch, 3]\n"
        "%4 = aten.add.Tensor(%1, %3) : float32[batch, 3]\n"
        "return (%4)\n"
    )
    after, result = rewritten(EliminateCommonSubexpressions(), program)
    assert after.text() == (
        "input %x : float32[batch, 3]\n"
        "%0 = aten.linear(%x, @linear.weight, @linear.bias) : float32[batch, 3]\n"
        "%1 = aten.relu(%0) : float32[batch, 3]\n"
        "%2 = aten.add.Tensor(%1, %1) : float32[batch, 3]\n"
        "return (%2)\n"
    )
    assert result.changed == ("linear_1", "relu_1")


class ArgumentTypes(nn.Module):
    """x + 1 in integers is not x + 1.0."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).float() + (x + 1.0) + (x + True).float()


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one, other = x * 2, x * 2
        one.add_(1)
        return one + other


class BothReturned(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 2


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (ArgumentTypes(), torch.arange(6).reshape(2, 3)),
        (Writes(), torch.randn(2, 3)),
        (BothReturned(), torch.randn(2, 3)),
    ],
    ids=["the type of an argument counts", "a value is written to", "both are returned"],
)
def test_what_only_looks_the_same_stays(module: nn.Module, x: Tensor):
    _, result = rewritten(EliminateCommonSubexpressions(), captured(module, x=x))
    assert result.changed == ()


def test_random_numbers_are_drawn_twice():
    program = captured(Twice(), x=torch.randn(2, 3))
    draws = []
    with program.graph.inserting_before(program.output_node()):
        (x,) = program.placeholders()
        draws = [program.graph.call_function(torch.ops.aten.rand_like.default, (x,)) for _ in range(2)]
        program.output_node().args = (tuple(draws),)
    program.refresh()
    EliminateCommonSubexpressions().rewrite(program, None)
    one, other = program.run(torch.randn(2, 3))
    assert not torch.equal(one, other)


@settings(max_examples=6)
@given(steps=st.lists(st.sampled_from(["double", "negate", "twin", "add"]), min_size=2, max_size=8))
def test_any_chain_keeps_its_numbers_and_has_no_two_equal_calls(steps: list[str]):
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values = [x, x]
            for step in steps:
                if step == "double":
                    values.append(values[-1] * 2)
                elif step == "negate":
                    values.append(-values[-2])
                elif step == "twin":
                    values.append(values[0] * 2)
                else:
                    values.append(values[-1] + values[-2])
            return torch.stack(values).sum(0)

    after, _ = rewritten(EliminateCommonSubexpressions(), captured(Chain(), x=torch.randn(2, 3)))
    calls = [(n.target, n.args) for n in after.graph.nodes if n.op == "call_function"]
    assert len(calls) == len({repr(call) for call in calls})
