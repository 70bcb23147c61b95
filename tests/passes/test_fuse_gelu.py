from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import zoo
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.fuse_gelu import FuseGelu
from compiler.patterns import aten
from compiler.program import Program

TOLERANCE = 1e-6
ROOT = math.sqrt(2 / math.pi)


class Activation(nn.Module):
    """A linear layer and an activation written out."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def program_of(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Program:
    return captured(Activation(function), x=torch.randn(4, 9).to(dtype) * 3)


def gelu_calls(program: Program) -> list[str]:
    calls = [node for node in program.graph.nodes if node.target is aten.gelu.default]
    return [str(node.kwargs.get("approximate", "none")) for node in calls]


def test_the_erf_form():
    program = program_of(lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))))
    assert program.text() == (
        "input %x : float32[batch, 9]\n"
        "%0 = aten.mul.Tensor(%x, 0.5) : float32[batch, 9]\n"
        "%1 = aten.div.Tensor(%x, 1.4142135623730951) : float32[batch, 9]\n"
        "%2 = aten.erf(%1) : float32[batch, 9]\n"
        "%3 = aten.add.Tensor(%2, 1.0) : float32[batch, 9]\n"
        "%4 = aten.mul.Tensor(%0, %3) : float32[batch, 9]\n"
        "return (%4)\n"
    )
    after, result = rewritten(FuseGelu(), program, tolerance=TOLERANCE)
    assert after.text() == "input %x : float32[batch, 9]\n%0 = aten.gelu(%x) : float32[batch, 9]\nreturn (%0)\n"
    assert result.changed == ("mul_1",)


def test_the_tanh_form():
    program = program_of(lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))))
    after, _ = rewritten(FuseGelu(), program, tolerance=TOLERANCE)
    assert after.text() == (
        "input %x : float32[batch, 9]\n%0 = aten.gelu(%x, approximate='tanh') : float32[batch, 9]\nreturn (%0)\n"
    )


ERF_FORMS = {
    "half last": lambda x: x * (1 + torch.erf(x * math.sqrt(0.5))) * 0.5,
    "half on the sum": lambda x: x * (0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    "divided by two": lambda x: x * (torch.erf(x * 0.7071067811865476) + 1) / 2,
    "erf first": lambda x: (torch.erf(x / math.sqrt(2)) + 1) * (x * 0.5),
}
TANH_FORMS = {
    "bloom": lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
    "fast": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "cube as products": lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * (x * x * x)))),
}


@pytest.mark.parametrize("form", ERF_FORMS)
def test_every_erf_form(form: str):
    after, _ = rewritten(FuseGelu(), program_of(ERF_FORMS[form]), tolerance=TOLERANCE)
    assert gelu_calls(after) == ["none"]
    assert len(after.graph.nodes) == 3


@pytest.mark.parametrize("form", TANH_FORMS)
def test_every_tanh_form(form: str):
    after, _ = rewritten(FuseGelu(), program_of(TANH_FORMS[form]), tolerance=TOLERANCE)
    assert gelu_calls(after) == ["tanh"]
    assert len(after.graph.nodes) == 3


def test_bfloat16():
    after, _ = rewritten(FuseGelu(), program_of(ERF_FORMS["half last"], torch.bfloat16), tolerance=1e-2)
    assert gelu_calls(after) == ["none"]


def test_x_may_itself_be_a_product():
    after, _ = rewritten(
        FuseGelu(), program_of(lambda x: ERF_FORMS["half last"](x * x * 0.25 + x)), tolerance=TOLERANCE
    )
    assert gelu_calls(after) == ["none"]


def test_gelu_itself_stays():
    _, result = rewritten(FuseGelu(), program_of(nn.functional.gelu))
    assert (result.changed, result.refusals) == ((), ())


def erf_twice(x: Tensor) -> Tensor:
    inner = x / math.sqrt(2)
    return 0.5 * x * (1 + torch.erf(inner)) + inner


REFUSED = {
    "the constants are not those of GELU": lambda x: 0.5 * x * (1 + torch.erf(x / 1.5)),
    "an inner value has other users": erf_twice,
    "x * sigmoid(1.702 * x) is another function, off by up to 0.02": lambda x: x * torch.sigmoid(1.702 * x),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str):
    _, result = rewritten(FuseGelu(), program_of(REFUSED[reason]))
    assert result.changed == ()
    assert [refusal.reason for refusal in result.refusals] == [reason]


NO_CANDIDATES = {
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh alone": torch.tanh,
    "erf alone": lambda x: 1 + torch.erf(x),
    "the factor is another value": lambda x: 0.5 * (x + 1) * (2 + torch.erf(x)),
    "twice the size": lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize("form", NO_CANDIDATES)
def test_other_functions_stay(form: str):
    _, result = rewritten(FuseGelu(), program_of(NO_CANDIDATES[form]))
    assert result.changed == ()


def test_the_factor_must_be_the_argument():
    class TwoInputs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return 0.5 * y * (1 + torch.erf(x / math.sqrt(2)))

    _, result = rewritten(FuseGelu(), captured(TwoInputs(), x=torch.randn(2, 3), y=torch.randn(2, 3)))
    assert result.changed == ()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2", "bloom"])
def test_both_feed_forwards_of_a_real_architecture(model: str):
    program = zoo.canonical(model)
    after, _ = rewritten(FuseGelu(), program, tolerance=1e-5)
    assert gelu_calls(after) == ["tanh", "tanh"]
