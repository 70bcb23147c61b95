from __future__ import annotations

import math

import pytest
import torch
import zoo
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.canonicalize import Canonicalize
from compiler.passes.fuse_rms_norm import FuseRmsNorm
from compiler.program import Program

WIDTH = 16
TOLERANCE = 1e-6
HALF_STEP = 2.0**-8
"""The most that rounding to bfloat16 changes, relatively."""
ROUNDINGS = 6.5
"""At most, of both sides: power, mean and sum, each halved by the root, the root, its reciprocal and two products of
the form; the operator's result is rounded once.
"""


class Norm(nn.Module):
    """The plain form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Llama(Norm):
    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + 1e-5)).to(x.dtype)


class Gemma(Norm):
    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (normal * (1.0 + self.weight.float())).type_as(x)


class DividesBySquareRoot(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-5) * self.weight


class Reciprocal(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.reciprocal(torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)) * self.weight


class PowerOfMinusHalf(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.pow(1e-5 + x.square().mean(-1, keepdim=True), -0.5) * self.weight


class Torch(nn.RMSNorm):
    def __init__(self) -> None:
        super().__init__(WIDTH, eps=1e-5)


def canonical(module: nn.Module, x: Tensor) -> Program:
    program = captured(module.eval(), x=x)
    return rewritten(Canonicalize(), program, tolerance=1e-6 if x.dtype == torch.float32 else 1e-2)[0]


def count(program: Program) -> int:
    return sum(node.target is torch.ops.regraft.rms_norm.default for node in program.graph.nodes)


def test_six_operators_become_one():
    program = canonical(Llama(), torch.randn(2, 3, WIDTH))
    assert program.text() == (
        "input %x : float32[batch, 3, 16]\n"
        "%0 = aten.pow.Tensor_Scalar(%x, 2) : float32[batch, 3, 16]\n"
        "%1 = aten.mean.dim(%0, [-1], True) : float32[batch, 3, 1]\n"
        "%2 = aten.add.Tensor(%1, 1e-05) : float32[batch, 3, 1]\n"
        "%3 = aten.rsqrt(%2) : float32[batch, 3, 1]\n"
        "%4 = aten.mul.Tensor(%x, %3) : float32[batch, 3, 16]\n"
        "%5 = aten.mul.Tensor(@weight, %4) : float32[batch, 3, 16]\n"
        "return (%5)\n"
    )
    after, result = rewritten(FuseRmsNorm(), program, tolerance=TOLERANCE)
    assert after.text() == (
        "input %x : float32[batch, 3, 16]\n"
        "%0 = regraft.rms_norm(%x, @weight, 1e-05) : float32[batch, 3, 16]\n"
        "return (%0)\n"
    )
    assert result.changed == ("mul_1",)


@pytest.mark.parametrize("form", [Norm, Llama, Gemma, DividesBySquareRoot, Reciprocal, PowerOfMinusHalf, Torch])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.bfloat16, ROUNDINGS * HALF_STEP)])
def test_every_form(form: type[nn.Module], dtype: torch.dtype, tolerance: float):
    program = canonical(form().to(dtype), torch.randn(2, 3, WIDTH, dtype=dtype))
    after, result = rewritten(FuseRmsNorm(), program, tolerance=tolerance)
    assert len(result.changed) == count(after) == 1
    assert result.refusals == ()
    assert not [node for node in after.graph.nodes if "mean" in node.name]


@pytest.mark.parametrize("form", [Norm, Llama, Gemma, DividesBySquareRoot, Reciprocal, PowerOfMinusHalf, Torch])
def test_of_bfloat16_it_is_the_formula_rounded_once(form: type[nn.Module]):
    module, x = form().to(torch.bfloat16), torch.randn(2, 3, WIDTH, dtype=torch.bfloat16)
    after, _ = rewritten(FuseRmsNorm(), canonical(module, x), tolerance=ROUNDINGS * HALF_STEP)
    scales = [one + (1 if form is Gemma else 0) for one in module.weight.tolist()]
    epsilon = 1e-6 if form is Gemma else 1e-5
    rows = []
    for row in x.double().flatten(0, 1).tolist():
        size = math.sqrt(sum(one * one for one in row) / WIDTH + epsilon)
        rows.append([one / size * scale for one, scale in zip(row, scales, strict=True)])
    expected = torch.tensor(rows, dtype=torch.float64).view(x.shape)
    (found,) = after.run(x)
    assert ((found.double() - expected).abs() <= 1.001 * HALF_STEP * expected.abs()).all()


def test_gemma_keeps_its_one_plus_weight():
    after, _ = rewritten(FuseRmsNorm(), canonical(Gemma(), torch.randn(2, WIDTH)), tolerance=TOLERANCE)
    assert after.text() == (
        "input %x : float32[batch, 16]\n"
        "%0 = aten.add.Tensor(@weight, 1.0) : float32[16]\n"
        "%1 = regraft.rms_norm(%x, %0, 1e-06) : float32[batch, 16]\n"
        "return (%1)\n"
    )


def test_a_chain_of_norms_with_residuals():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([Llama(), Gemma(), Norm()])

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = x + norm(x)
            return x

    after, _ = rewritten(FuseRmsNorm(), canonical(Chain(), torch.randn(2, WIDTH)), tolerance=TOLERANCE)
    assert count(after) == 3


class OtherDim(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5) * self.weight


class VarianceReturned(Norm):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        variance = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + 1e-5) * self.weight, variance


class NormalReturned(Norm):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return normal * self.weight, normal


class NoWeight(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class WeightPerToken(Norm):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class StaysWide(Norm):
    """The weight is float32, so the result of bfloat16 input is too."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.bfloat16).float()
        normal = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(torch.bfloat16)
        return self.weight * normal


class TwoDims(nn.RMSNorm):
    def __init__(self) -> None:
        super().__init__((3, WIDTH), eps=1e-5)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (OtherDim, "the mean is not over the last dim alone"),
        (TwoDims, "the mean is not over the last dim alone"),
        (VarianceReturned, "an inner value has other users"),
        (NormalReturned, "an inner value has other users"),
        (NoWeight, "no weight scales the result"),
        (WeightPerToken, "the weight is not 1-d"),
        (StaysWide, "the result has another dtype than x"),
    ],
)
def test_refusals(form: type[nn.Module], reason: str):
    program = canonical(form(), torch.randn(2, 3, WIDTH))
    _, result = rewritten(FuseRmsNorm(), program)
    assert result.changed == ()
    assert [refusal.reason for refusal in result.refusals] == [reason]


def test_a_layer_norm_written_out_is_no_rms_norm():
    class LayerNorm(Norm):
        def forward(self, x: Tensor) -> Tensor:
            centred = x - x.mean(-1, keepdim=True)
            return x * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight

    _, result = rewritten(FuseRmsNorm(), canonical(LayerNorm(), torch.randn(2, WIDTH)))
    assert (result.changed, result.refusals) == ((), ())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "norms"),
    [("llama", 5), ("gemma2", 9), ("qwen3", 9), ("t5", 12)],
    ids=["llama", "gemma2 (1 + w, four a layer)", "qwen3 (queries and keys too)", "t5 (two stacks)"],
)
def test_every_norm_of_a_real_architecture(model: str, norms: int):
    program = zoo.canonical(model)
    after, result = rewritten(FuseRmsNorm(), program, tolerance=1e-5)
    assert (len(result.changed), count(after), result.refusals) == (norms, norms, ())
