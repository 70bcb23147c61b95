"""smooth: the graphs before and after, the numbers, a second run, and every refusal."""

from __future__ import annotations

import pytest
import torch
from rewrite_checks import captured, context_of, rewritten
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.evidence.data import Dataset
from compiler.options import build
from compiler.passes.smooth import Smooth
from compiler.rewriting import PassContext
from compiler.target import Target

EXACT = 1e-6


class PreNorm(nn.Module):
    """Only the two linear layers read the norm: the scale goes into its weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.query, self.key = nn.Linear(32, 40), nn.Linear(32, 24)
        torch.nn.init.uniform_(self.norm.weight, 0.1, 8.0)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return torch.cat([self.query(normed), self.key(normed)], -1)


class PostNorm(nn.Module):
    """The residual reads the norm too: a product goes in front of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.dense = nn.Linear(32, 32)
        torch.nn.init.uniform_(self.norm.weight, 0.1, 8.0)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return self.dense(normed) + normed


class Gated(nn.Module):
    """The scale of the last layer's input goes into the rows of `up`, the factor without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        with torch.no_grad():
            self.up.weight *= torch.linspace(0.05, 9.0, 48)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(torch.tanh(self.dense(x)))


def example(width: int = 32) -> Tensor:
    return torch.randn(3, 5, width, generator=torch.Generator().manual_seed(0))


def built(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return cls().eval()


def test_the_scale_goes_into_the_norm() -> None:
    program = captured(built(PreNorm), x=example())
    before = program.text()
    after, result = rewritten(Smooth(alpha=0.5), program, tolerance=EXACT)
    assert result.changed == ("query", "key")
    assert after.text() == before.replace("query.weight", "query.weight_smoothed").replace(
        "key.weight", "key.weight_smoothed"
    )
    ratio = program.weight("norm.weight") / after.weight("norm.weight")
    torch.testing.assert_close(after.weight("query.weight_smoothed"), program.weight("query.weight") * ratio)
    torch.testing.assert_close(after.weight("norm.bias") * ratio, program.weight("norm.bias"))


def test_the_scale_is_that_of_equation_4() -> None:
    program = captured(built(PreNorm), x=example())
    after, _ = rewritten(Smooth(alpha=0.7), program, tolerance=EXACT)
    normed = torch.nn.functional.layer_norm(
        example(), (32,), program.weight("norm.weight"), program.weight("norm.bias")
    )
    inputs = normed.abs().amax(1).mean(0)  # the mean over samples of max |x|
    weights = torch.cat([program.weight("query.weight"), program.weight("key.weight")]).abs().amax(0)
    expected = inputs**0.7 / weights**0.3
    found = program.weight("norm.weight") / after.weight("norm.weight")
    torch.testing.assert_close(found / found[0], expected / expected[0], rtol=1e-4, atol=0)


def test_a_product_is_written_where_something_else_reads_the_norm() -> None:
    after, result = rewritten(Smooth(alpha=0.5), captured(built(PostNorm), x=example()), tolerance=EXACT)
    assert result.changed == ("dense",)
    products = after.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert [str(node.args[1].target) for node in products] == ["dense.smoothing"]


def test_the_scale_goes_into_the_plain_factor_of_a_gate() -> None:
    program = captured(built(Gated), x=example())
    after, result = rewritten(Smooth(alpha=0.5), program, tolerance=EXACT)
    assert "down" in result.changed
    products = after.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert [str(node.args[1].target) for node in products if node.args[1].op == "get_attr"] == ["gate.smoothing"]
    assert not torch.equal(after.weight("up.bias"), program.weight("up.bias"))


def test_smoothing_brings_the_quantized_layer_nearer() -> None:
    from compiler.passes.quantize import Quantize

    torch.manual_seed(0)
    module = PostNorm()
    with torch.no_grad():
        module.norm.weight[3] = 300.0
        module.dense.weight[:, 3] *= 0.01
    program = captured(module.eval(), x=example())
    smoothed, result = rewritten(Smooth(), program, tolerance=EXACT)
    assert result.changed == ("dense",)

    def error(one) -> float:
        from compiler.grafting import apply_graft

        quantized, _ = apply_graft(Quantize(), one, (), context_of(one))
        return float((quantized.run(example())[0] - program.run(example())[0]).square().mean())

    assert error(smoothed) < error(program) / 4


@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (Shared, {"alpha": 0.5}, "its weight dense.weight is shared with linear_1"),
        (PostNorm, {"alpha": 0.5, "multiply": False}, "nothing before its input takes the scale"),
    ],
)
def test_refusals(module: type[nn.Module], options: dict[str, float | bool], reason: str) -> None:
    program = captured(built(module), x=example())
    result = Smooth(**options).rewrite(program.copy(), context_of(program))
    assert result.changed == ()
    assert result.refusals[0].reason == reason


def test_an_input_that_is_even_already_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(32, 32))
    program = captured(module.eval(), input=torch.ones(3, 5, 32))
    with torch.no_grad():
        program.weight("0.weight").fill_(0.5)
    result = Smooth().rewrite(program.copy(), context_of(program))
    assert "smoothing would leave" in result.refusals[0].reason


def test_without_calibration_data_nothing_is_smoothed() -> None:
    program = captured(built(PreNorm), x=example())
    context = PassContext(Target.parse("cpu"), Dataset("none", (), ()))
    result = Smooth().rewrite(program.copy(), context)
    assert {refusal.reason for refusal in result.refusals} == {"no calibration data reaches its input"}


@pytest.mark.parametrize("weight", [torch.nan, 0.0])
def test_weights_without_a_scale_are_refused(weight: float) -> None:
    program = captured(built(PostNorm), x=example())
    program.set_weight("dense.weight", torch.full((32, 32), weight))
    result = Smooth(alpha=0.5).rewrite(program, context_of(program))
    assert result.refusals[0].reason.startswith("its input or its weight is")


def test_alpha_is_between_0_and_1() -> None:
    with pytest.raises(CompilerError, match=r"alpha=1\.5 is not between 0 and 1"):
        build(Smooth, {"alpha": "1.5"})
