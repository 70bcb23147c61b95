from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.fold_constants import FoldConstants


class ScaledTranspose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.t() * 2)


def test_a_subgraph_of_weights_becomes_one_weight():
    program = captured(ScaledTranspose(), x=torch.randn(2, 3))
    assert program.text() == (
        "input %x : float32[batch, 3]\n"
        "%0 = aten.t(@weight) : float32[4, 3]\n"
        "%1 = aten.mul.Tensor(%0, 2) : float32[4, 3]\n"
        "%2 = aten.linear(%x, %1) : float32[batch, 4]\n"
        "return (%2)\n"
    )
    after, result = rewritten(FoldConstants(), program, tolerance=1e-6)
    assert after.text() == (
        "input %x : float32[batch, 3]\n%0 = aten.linear(%x, @weight_folded) : float32[batch, 4]\nreturn (%0)\n"
    )
    assert result.changed == ("mul",)
    assert torch.equal(after.weight("weight_folded"), program.weight("weight").t() * 2)
    assert after.weight("weight_folded").requires_grad
    assert set(after.weights()) == {"weight_folded"}


class TablesFromNumbers(nn.Module):
    """Positions and frequencies, as models make them for rotary embeddings."""

    def forward(self, x: Tensor) -> Tensor:
        frequencies = 1.0 / 10000 ** (torch.arange(0, 4, 2) / 4)
        return x * torch.cat([frequencies, frequencies]).cos()


def test_tables_made_of_numbers_alone_are_stored():
    after, result = rewritten(FoldConstants(), captured(TablesFromNumbers(), x=torch.randn(2, 4)))
    assert [node.op for node in after.graph.nodes] == ["placeholder", "get_attr", "call_function", "output"]
    assert len(result.changed) == 1
    (table,) = after.weights().values()
    assert not table.requires_grad


class Grows(nn.Module):
    """1 KiB of weights that would become 256 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(256))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.row[:, None] * self.row)


def test_a_fold_that_would_make_the_file_grow_is_refused():
    program = captured(Grows(), x=torch.randn(2, 256))
    _, result = rewritten(FoldConstants(), program)
    assert result.changed == ()
    assert [(refusal.node, refusal.reason) for refusal in result.refusals] == [("mul", "folding it adds 261,120 bytes")]
    after, result = rewritten(FoldConstants(growth_kib=256), program, tolerance=1e-6)
    assert result.changed == ("mul",)
    assert set(after.weights()) == {"row_folded"}


class Shared(nn.Module):
    """The weight is read elsewhere, so that folding its transpose would store it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(256, 256))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + x @ self.weight.t().tanh()


def test_bytes_that_stay_in_use_are_not_counted_as_freed():
    _, result = rewritten(FoldConstants(), captured(Shared(), x=torch.randn(2, 256)))
    assert result.changed == ()
    assert "262,144" in result.refusals[0].reason


class Fill(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(3).reshape(1, 3)


def test_a_tensor_filled_with_one_number_stays_an_operator():
    _, result = rewritten(FoldConstants(), captured(Fill(), x=torch.randn(2, 3)))
    assert result.changed == ()


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        written = torch.zeros(3)
        written.add_(1.0)
        return x + written


def test_what_is_written_in_place_stays():
    _, result = rewritten(FoldConstants(), captured(Draws(), x=torch.randn(2, 3)))
    assert result.changed == ()


def test_random_numbers_are_never_folded():
    program = captured(Fill(), x=torch.randn(2, 3))
    with program.graph.inserting_before(program.output_node()):
        draw = program.graph.call_function(torch.ops.aten.rand.default, ([3],))
        total = program.graph.call_function(torch.ops.aten.mul.Tensor, (draw, 2))
        (x,) = program.placeholders()
        summed = program.graph.call_function(torch.ops.aten.add.Tensor, (x, total))
        program.output_node().args = ((summed,),)
    program.refresh()
    FoldConstants().rewrite(program, None)
    assert not torch.equal(program.run(torch.zeros(2, 3))[0], program.run(torch.zeros(2, 3))[0])


@settings(max_examples=8)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    steps=st.lists(st.sampled_from(["transpose", "scale", "exp", "flip"]), max_size=5),
)
def test_any_chain_on_a_weight_folds_to_its_own_value(rows: int, columns: int, steps: list[str]):
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(rows, columns))

        def forward(self, x: Tensor) -> Tensor:
            value = self.weight
            for step in steps:
                value = {"transpose": value.t, "scale": lambda v=value: v * 0.5, "exp": value.exp}.get(
                    step, lambda v=value: v.flip(0)
                )()
            return x + value.sum()

    after, result = rewritten(FoldConstants(), captured(Chain(), x=torch.randn(2, 1)))
    assert len(result.changed) == 1
    assert len(after.weights()) == 1
