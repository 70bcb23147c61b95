"""pre-merge: the product of two products, merged where it is measured to be faster and nowhere else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from rewrite_checks import assert_near, captured, context_of, other_size
from structured_checks import grafted, two_layers
from torch import Tensor, nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.options import build
from compiler.passes.linear import pre_merge
from compiler.passes.linear.low_rank import LowRank
from compiler.passes.linear.pre_merge import PreMerge
from compiler.program import Program
from compiler.rewriting import PassResult

TOLERANCE = 1e-5


class Pair(nn.Module):
    """Two products in a row, with biases or not."""

    def __init__(self, first_bias: bool, second_bias: bool, *, read_twice: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(12, 5, first_bias), nn.Linear(5, 9, second_bias)
        self.read_twice = read_twice

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 12] to [batch, 9]."""
        inner = self.down(x)
        y = torch.tanh(self.up(inner))
        return y + inner.sum(-1, keepdim=True) if self.read_twice else y


def program_of(module: nn.Module) -> Program:
    torch.manual_seed(0)
    return captured(module.eval(), x=torch.randn(3, 12))


def merged(program: Program, gain: float | None, monkeypatch: pytest.MonkeyPatch) -> tuple[Program, PassResult]:
    """A copy after the pass, on a machine where every product is so much faster than its pair."""
    monkeypatch.setattr(pre_merge, "measured_gain", lambda *given: gain)
    after = program.copy()
    return after, PreMerge().rewrite(after, context_of(program))


@pytest.mark.parametrize("first_bias", [False, True])
@pytest.mark.parametrize("second_bias", [False, True])
def test_one_product_gives_what_two_gave(first_bias: bool, second_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(Pair(first_bias, second_bias))
    after, result = merged(program, 1.5, monkeypatch)
    assert result.changed == ("up",)
    bias = ", @up.merged_bias" if first_bias or second_bias else ""
    assert after.text() == (
        "input %x : float32[batch, 12]\n"
        f"%0 = aten.linear(%x, @up.merged_weight{bias}) : float32[batch, 9]\n"
        "%1 = aten.tanh(%0) : float32[batch, 9]\n"
        "return (%1)\n"
    )
    for inputs in (program.example_inputs, other_size(program)):
        assert_near(after.run(*inputs)[0], program.run(*inputs)[0], TOLERANCE)
    assert PreMerge().rewrite(after, context_of(program)).changed == ()


def test_a_pair_that_is_faster_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(Pair(first_bias=False, second_bias=True))
    after, result = merged(program, 0.4, monkeypatch)
    assert after.text() == program.text()
    assert [one.reason for one in result.refusals] == [
        "one product would be 0.40 times as fast as what is there at 1 token a call"
    ]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(Pair(first_bias=False, second_bias=True, read_twice=True))
    _, result = merged(program, 1.5, monkeypatch)
    assert [one.reason for one in result.refusals] == ["the first product has other users"]
    _, result = merged(program_of(Pair(first_bias=False, second_bias=True)), None, monkeypatch)
    assert [one.reason for one in result.refusals] == ["it cannot be timed: nothing is lowered, or not this alone"]
    with pytest.raises(CompilerError, match="tokens=0 is not from 1"):
        build(PreMerge, {"tokens": "0"})


def test_low_rank_layers_are_timed_where_they_are_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    program = two_layers()
    low_rank, _ = grafted(LowRank(ratio=0.95), program)
    context = dataclasses.replace(context_of(program), backend=OnnxRuntime())
    after = low_rank.copy()
    result = PreMerge().rewrite(after, context)
    assert len(result.changed) + len(result.refusals) == 2
    assert_near(after.run(*program.example_inputs)[0], low_rank.run(*program.example_inputs)[0], TOLERANCE)
