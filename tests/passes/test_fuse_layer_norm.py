from __future__ import annotations

import pytest
import torch
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.canonicalize import Canonicalize
from compiler.passes.fuse_layer_norm import FuseLayerNorm
from compiler.passes.fuse_rms_norm import FuseRmsNorm
from compiler.program import Program
from compiler.sites import Site, find_sites

WIDTH = 16
TOLERANCE = 1e-6


class Norm(nn.Module):
    """The form that the exporter of PyTorch writes for ONNX before opset 17."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        difference = x - x.mean(-1, keepdim=True)
        variance = difference.pow(2).mean(-1, keepdim=True)
        return difference / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class Product(Norm):
    def forward(self, x: Tensor) -> Tensor:
        difference = x - x.mean(2, True)
        variance = (difference * difference).mean(2, True)
        return self.bias + self.weight * (torch.rsqrt(1e-5 + variance) * difference)


class Reciprocal(Norm):
    def forward(self, x: Tensor) -> Tensor:
        difference = x - x.mean(-1, keepdim=True)
        root = torch.sqrt(difference.square().mean(-1, keepdim=True) + 1e-5)
        return difference * torch.reciprocal(root) * self.weight + self.bias


class WithoutBias(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.bias


class Plain(nn.Module):
    """Neither weight nor bias."""

    def forward(self, x: Tensor) -> Tensor:
        difference = x - x.mean(-1, keepdim=True)
        return difference / torch.sqrt(difference.pow(2).mean(-1, keepdim=True) + 1e-5)


def canonical(module: nn.Module) -> Program:
    return rewritten(Canonicalize(), captured(module.eval(), x=torch.randn(2, 3, WIDTH)), tolerance=TOLERANCE)[0]


def test_nine_operators_become_one():
    program = canonical(Norm())
    assert program.text() == (
        "input %x : float32[batch, 3, 16]\n"
        "%0 = aten.mean.dim(%x, [-1], True) : float32[batch, 3, 1]\n"
        "%1 = aten.sub.Tensor(%x, %0) : float32[batch, 3, 16]\n"
        "%2 = aten.pow.Tensor_Scalar(%1, 2) : float32[batch, 3, 16]\n"
        "%3 = aten.mean.dim(%2, [-1], True) : float32[batch, 3, 1]\n"
        "%4 = aten.add.Tensor(%3, 1e-05) : float32[batch, 3, 1]\n"
        "%5 = aten.sqrt(%4) : float32[batch, 3, 1]\n"
        "%6 = aten.div.Tensor(%1, %5) : float32[batch, 3, 16]\n"
        "%7 = aten.mul.Tensor(%6, @weight) : float32[batch, 3, 16]\n"
        "%8 = aten.add.Tensor(%7, @bias) : float32[batch, 3, 16]\n"
        "return (%8)\n"
    )
    after, result = rewritten(FuseLayerNorm(), program, tolerance=TOLERANCE)
    assert after.text() == (
        "input %x : float32[batch, 3, 16]\n"
        "%0 = aten.layer_norm(%x, [16], @weight, @bias, 1e-05) : float32[batch, 3, 16]\n"
        "return (%0)\n"
    )
    assert result.changed == ("add_1",)


@pytest.mark.parametrize("form", [Norm, Product, Reciprocal, WithoutBias, Plain])
def test_every_form_is_one_site_before_and_after(form: type[nn.Module]):
    program = canonical(form())
    before = [one for one in find_sites(program, ("norm",)) if isinstance(one, Site)]
    after, result = rewritten(FuseLayerNorm(), program, tolerance=TOLERANCE)
    fused = [one for one in find_sites(after, ("norm",)) if isinstance(one, Site)]
    assert len(result.changed) == 1
    assert [one.bindings for one in before] == [one.bindings for one in fused]
    assert fused[0].bindings["norm"] == "layer_norm"
    assert (fused[0].bindings["weight"] is None) == (form is Plain)


def test_it_is_no_rms_norm():
    program = canonical(Norm())
    assert rewritten(FuseRmsNorm(), program)[1].changed == ()


class OverTokens(Norm):
    def forward(self, x: Tensor) -> Tensor:
        difference = x - x.mean(1, keepdim=True)
        variance = difference.pow(2).mean(1, keepdim=True)
        return difference / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class ReturnsTheMean(Norm):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(-1, keepdim=True)
        difference = x - mean
        variance = difference.pow(2).mean(-1, keepdim=True)
        return difference / torch.sqrt(variance + 1e-5) * self.weight + self.bias, mean


class ReturnsTheDifference(Norm):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        difference = x - x.mean(-1, keepdim=True)
        variance = difference.pow(2).mean(-1, keepdim=True)
        return difference / torch.sqrt(variance + 1e-5) * self.weight + self.bias, difference


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (OverTokens, "the mean is not over the last dim alone"),
        (ReturnsTheMean, "an inner value has other users"),
        (ReturnsTheDifference, "an inner value has other users"),
    ],
)
def test_refusals(form: type[nn.Module], reason: str):
    _, result = rewritten(FuseLayerNorm(), canonical(form()))
    assert result.changed == ()
    assert [refusal.reason for refusal in result.refusals] == [reason]


def test_a_width_that_varies_is_refused():
    from compiler.frontends.torch_export import capture

    program = capture(Plain(), {"x": torch.randn(4, 5, 6)}, source="Plain", dynamic={"x": {2: "width"}})
    _, result = rewritten(FuseLayerNorm(), program)
    assert [refusal.reason for refusal in result.refusals] == ["the width varies"]
