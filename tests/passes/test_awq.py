"""awq: the graphs before and after, the scales against the paper's search, what it gains, and every refusal."""

from __future__ import annotations

import pytest
import torch
from rewrite_checks import captured, context_of, rewritten
from torch import Tensor, nn

from compiler.evidence.data import Dataset
from compiler.grafting import apply_graft
from compiler.passes.awq import Awq
from compiler.passes.quantize import Quantize
from compiler.program import Program
from compiler.rewriting import PassContext
from compiler.target import Target

EXACT = 1e-6


class Normed(nn.Module):
    """A few channels of the norm are loud."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.query, self.key = nn.Linear(64, 96), nn.Linear(64, 32)
        with torch.no_grad():
            self.norm.weight[::16] = 12.0

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return torch.cat([self.query(normed), self.key(normed)], -1)


class Residual(Normed):
    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return torch.cat([self.query(normed), self.key(normed), normed], -1)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(torch.tanh(self.dense(x)))


class Even(nn.Module):
    """No channel is louder than another."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = nn.LayerNorm(64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.norm(x))


def example() -> Tensor:
    return torch.randn(6, 40, 64, generator=torch.Generator().manual_seed(0))


def program_of(module: type[nn.Module]) -> Program:
    torch.manual_seed(0)
    return captured(module().eval(), x=example())


def test_the_scale_goes_into_the_norm() -> None:
    program = program_of(Normed)
    before = program.text()
    after, result = rewritten(Awq(), program, tolerance=EXACT)
    assert result.changed == ("query", "key")
    assert after.text() == before.replace("query.weight", "query.weight_scaled").replace(
        "key.weight", "key.weight_scaled"
    )
    ratio = program.weight("norm.weight") / after.weight("norm.weight")
    torch.testing.assert_close(after.weight("query.weight_scaled"), program.weight("query.weight") * ratio)
    torch.testing.assert_close(after.weight("norm.bias") * ratio, program.weight("norm.bias"))


def rounded(weight: Tensor) -> Tensor:
    """To 4 bits in blocks of 32 with a zero point: the paper's equation 1, block by block."""
    result = weight.clone()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], 32):
            block = weight[row, start : start + 32]
            high, low = max(float(block.max()), 0.0), min(float(block.min()), 0.0)
            step = (high - low) / 15
            zero = min(max(round(-low / step), 0), 15)
            codes = torch.clamp(torch.round(block / step) + zero, 0, 15)
            result[row, start : start + 32] = (codes - zero) * step
    return result


def test_the_scales_are_those_of_the_search_over_alpha() -> None:
    program = program_of(Normed)
    after, _ = rewritten(Awq(), program, tolerance=EXACT)
    x = torch.nn.functional.layer_norm(example(), (64,), program.weight("norm.weight")).flatten(0, 1).detach()
    weight = torch.cat([program.weight("query.weight"), program.weight("key.weight")]).detach()
    magnitude = x.square().mean(0).sqrt()
    errors = {}
    for step in range(1, 21):
        scales = magnitude ** (step / 20)
        errors[step] = float((x @ (rounded(weight * scales) / scales - weight).T).square().sum())
    found = (program.weight("norm.weight") / after.weight("norm.weight")).detach()
    alpha = (found.log() @ magnitude.log() - found.log().sum() * magnitude.log().mean()) / (
        (magnitude.log() - magnitude.log().mean()).square().sum()
    )
    assert float(alpha) * 20 == pytest.approx(min(errors, key=errors.__getitem__), abs=0.01)


def test_few_bits_are_nearer_after_it() -> None:
    program = program_of(Normed)
    scaled, _ = rewritten(Awq(), program, tolerance=EXACT)

    def error(one: Program) -> float:
        graft = Quantize(bits=4, rounding="nearest", clip="none")
        quantized, result = apply_graft(graft, one, (), context_of(one))
        assert len(result.changed) == 2
        return float((quantized.run(example())[0] - program.run(example())[0]).square().mean())

    assert error(scaled) < 0.5 * error(program)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Residual, "nothing before its input takes the scale"),
        (Shared, "its weight dense.weight is shared with linear_1"),
        (Even, "scaling would leave "),
    ],
)
def test_refusals(module: type[nn.Module], reason: str) -> None:
    program = program_of(module)
    result = Awq().rewrite(program.copy(), context_of(program))
    assert result.changed == ()
    assert result.refusals[0].reason.startswith(reason)


def test_without_calibration_data_nothing_is_scaled() -> None:
    context = PassContext(Target.parse("cpu"), Dataset("none", (), ()))
    result = Awq().rewrite(program_of(Normed), context)
    assert {refusal.reason for refusal in result.refusals} == {"no calibration data reaches its input"}


@pytest.mark.parametrize(("weight", "reason"), [(torch.nan, "its input or its weight is not finite")])
def test_weights_that_are_not_finite_are_refused(weight: float, reason: str) -> None:
    program = program_of(Normed)
    program.set_weight("query.weight", torch.full((96, 64), weight))
    assert Awq().rewrite(program, context_of(program)).refusals[0].reason == reason


def test_an_input_of_zeros_is_refused() -> None:
    program = program_of(Normed)
    program.set_weight("norm.weight", torch.zeros(64))
    assert Awq().rewrite(program, context_of(program)).refusals[0].reason == "its input is zero"
