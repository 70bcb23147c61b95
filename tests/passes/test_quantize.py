"""quantize: what stands in for which site, how far it is off, the rungs of a budget, and every refusal."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.evidence.data import Dataset
from compiler.grafting import apply_graft
from compiler.options import build
from compiler.passes.quantize import Quantize
from compiler.program import Program
from compiler.rewriting import PassContext, PassResult, Replacement
from compiler.sites import Refusal, find_sites
from compiler.target import Target


class Small(nn.Module):
    """A table, a layer with a bias, one without, whose inputs fill no whole block."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 40)
        self.first, self.second = nn.Linear(40, 72), nn.Linear(72, 33, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.table(indices))))


def indices() -> Tensor:
    return torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return captured(Small().eval(), indices=indices())


def quantized(program: Program, **options: Any) -> tuple[Program, PassResult]:
    return apply_graft(Quantize(**options), program, (), context_of(program))


def error(found: Program, expected: Program) -> float:
    """Of the outputs, as a part of their size."""
    (ours,), (theirs,) = found.run(indices()), expected.run(indices())
    return float((ours - theirs).norm() / theirs.norm())


def operators(program: Program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if "regraft" in str(node.target)]


def test_the_graph_before_and_after(program: Program) -> None:
    aten = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert aten == ["aten.embedding.default", "aten.linear.default", "aten.relu.default", "aten.linear.default"]
    after, result = quantized(program, activations="dynamic")
    called = [str(node.target) for node in after.graph.nodes if node.op == "call_function"]
    assert called == [
        "regraft.quantized_embedding.default",
        "regraft.dynamic_quantized_linear.default",
        "aten.relu.default",
        "regraft.dynamic_quantized_linear.default",
    ]
    assert result.changed == ("table", "first", "second")
    shapes = {name: (str(value.dtype), tuple(value.shape)) for name, value in after.weights().items()}
    assert shapes["first.quantize.weight"] == ("torch.int8", (40, 72))
    assert shapes["first.quantize.scales"] == ("torch.float32", (72,))
    assert shapes["table.quantize.weight"] == ("torch.uint8", (50, 30))
    assert shapes["table.quantize.scales"] == ("torch.float32", (50, 1))
    assert not any(name in shapes for name in ("first.weight", "second.weight", "table.weight"))


@pytest.mark.parametrize(
    ("options", "operator", "allowed"),
    [
        ({"activations": "dynamic"}, "dynamic_quantized_linear", 0.03),
        ({"activations": "rows"}, "dynamic_quantized_linear", 0.02),
        ({"activations": "none", "group": 32}, "quantized_linear", 0.02),
        ({"bits": 4, "group": 32}, "quantized_linear", 0.12),
    ],
)
@pytest.mark.parametrize("rounding", ["compensated", "nearest"])
def test_numbers_stay_near(
    program: Program, options: dict[str, Any], operator: str, allowed: float, rounding: str
) -> None:
    after, _ = quantized(program, rounding=rounding, embeddings=8, **options)
    assert operators(after)[1:] == [f"regraft.{operator}.default"] * 2
    assert 1e-4 < error(after, program) < allowed
    longer = torch.randint(0, 50, (7, 6))
    assert after.run(longer)[0].shape == program.run(longer)[0].shape


@pytest.mark.parametrize(("bits", "allowed"), [(8, 0.006), (6, 0.03), (4, 0.12)])
def test_a_table_in_few_bits(program: Program, bits: int, allowed: float) -> None:
    after, result = quantized(program, embeddings=bits, skip=("first", "second"))
    assert result.changed == ("table",)
    assert error(after, program) < allowed


def test_dynamic_weights_are_a_rounding_of_the_originals(program: Program) -> None:
    after, _ = quantized(program, activations="dynamic", rounding="nearest", clip="none", embeddings=None)
    weights = after.weights()
    weight = program.weight("second.weight")
    scales = weight.abs().amax(1) / 127
    torch.testing.assert_close(weights["second.quantize.scales"], scales)
    expected = torch.round(weight / scales[:, None]).to(torch.int8).T
    assert torch.equal(weights["second.quantize.weight"], expected)


def test_compensated_rounding_is_nearer_on_the_outputs() -> None:
    """Inputs that hang together, where the error of one weight can be undone by others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    x = x + 0.1 * torch.randn(400, 64, generator=generator)
    torch.manual_seed(0)
    program = captured(nn.Sequential(nn.Linear(64, 48)).eval(), input=x)
    errors = {}
    for rounding in ("compensated", "nearest"):
        after, _ = quantized(program, bits=4, group=64, rounding=rounding)
        errors[rounding] = float((after.run(x)[0] - program.run(x)[0]).square().mean())
    assert errors["compensated"] < 0.6 * errors["nearest"]


def test_rows_of_very_different_size_get_scales_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 64, generator=generator)
    x[0] *= 80
    torch.manual_seed(0)
    program = captured(nn.Sequential(nn.Linear(64, 48)).eval(), input=x)
    context = context_of(program)
    _, automatic = apply_graft(Quantize(), program, (), context)
    assert "a scale a row" in automatic.outcomes[0].note
    errors = []
    for activations in ("dynamic", "rows"):
        after, _ = quantized(program, activations=activations)
        errors.append(float((after.run(x)[0] - program.run(x)[0])[1:].square().mean()))
    assert errors[1] < errors[0] / 20


def test_the_ladder_goes_to_gentler_rungs(program: Program) -> None:
    notes: dict[str, list[str]] = {}
    for site in find_sites(program, ("linear", "embedding")):
        assert not isinstance(site, Refusal)
        context = dataclasses.replace(context_of(program), max_drop=0.01)
        proposal = Quantize(activations="dynamic").propose(site, program, context)
        while isinstance(proposal, Replacement):
            notes.setdefault(site.name, []).append(proposal.note)
            proposal = proposal.gentler() if proposal.gentler is not None else Refusal("the original", "")
    assert notes["first"] == [
        "int8 weights, dynamic int8 activations",
        "int8 weights, dynamic int8 activations with a scale a row",
        "8-bit weights in blocks of 64",
    ]
    assert notes["table"] == ["6-bit table", "8-bit table"]


def test_the_same_bytes_every_time(program: Program) -> None:
    first, second = (quantized(program)[0].weights() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_run_finds_nothing(program: Program) -> None:
    after, _ = quantized(program)
    assert quantized(after)[1].changed == ()


def test_without_calibration_data_rounding_is_to_nearest(program: Program) -> None:
    context = dataclasses.replace(context_of(program), data=Dataset("none", (), ()))
    _, result = apply_graft(Quantize(), program, (), context)
    assert result.outcomes[1].note.endswith("rounded to nearest for want of calibration data")


class Tied(nn.Module):
    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.table(indices))


@pytest.mark.parametrize(
    ("options", "bits", "block", "zero_points", "allowed"),
    [
        ({}, 8, 32, False, 0.006),
        ({"embeddings": 4}, 4, 32, True, 0.1),
        ({"embeddings": 4, "symmetric": True, "group": 16}, 4, 16, False, 0.13),
    ],
)
def test_a_table_that_is_the_head_too_is_stored_once(
    options: dict[str, Any], bits: int, block: int, zero_points: bool, allowed: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    program = captured(Tied(96).eval(), indices=indices())
    after, result = quantized(program, **options)
    assert result.changed == ("table", "head")
    assert [outcome.note for outcome in result.outcomes] == [
        f"{bits}-bit table in blocks of {block}, shared with head",
        f"{bits}-bit table in blocks of {block}, shared with table",
    ]
    sizes = sorted(tuple(value.shape) for value in after.weights().values())
    packed_zeros = [(50, -(-(96 // block) * bits // 8))] if zero_points else []
    assert sizes == sorted([(50, 96 // block, block * bits // 8), (50, 96 // block), *packed_zeros])
    assert operators(after) == ["regraft.quantized_embedding.default", "regraft.quantized_linear.default"]
    assert error(after, program) < allowed
    OnnxRuntime().lower(after, Target.parse("cpu"), tmp_path)
    file = onnx.load(tmp_path / "model.onnx")
    tables = [one.name for one in file.graph.initializer if onnx.numpy_helper.to_array(one).size == 50 * 96 * bits // 8]
    assert len(tables) == 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"indices": indices().numpy()})
    (expected,) = after.run(indices())
    assert float((torch.from_numpy(found) - expected).norm() / expected.norm()) < 0.01  # inputs are rounded to 8 bits


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.convolution = nn.Embedding(50, 8), nn.Conv1d(8, 64, 3)

    def forward(self, indices: Tensor) -> Tensor:
        return self.convolution(self.table(indices).transpose(1, 2))


class Odd(nn.Module):
    """Rows of 45 codes fill whole bytes at 8 bits only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 45)

    def forward(self, indices: Tensor) -> Tensor:
        return self.table(indices)


def spoil(program: Program) -> None:
    weight = program.weight("first.weight").detach().clone()
    weight[0, 0] = torch.inf
    program.set_weight("first.weight", weight)


@pytest.mark.parametrize(
    ("module", "options", "site", "reason"),
    [
        (Tied, {"skip": ("head",)}, "table", "its weight table.weight is shared with linear"),
        (Tied, {"embeddings": None}, "head", "its weight table.weight is shared with embedding"),
        (Tied, {}, "head", "its weight is shared, and rows of 40 fill no whole blocks"),
        (Convolution, {"skip": ("conv*",)}, "convolution", "skip=conv* leaves it out"),
        (Convolution, {}, "table", "400 weights are too few to be worth it"),
        (Odd, {}, "table", "a row does not pack: 45 codes of 6 bits do not fill whole bytes"),
        (Small, {"sites": ("first",)}, "second", "sites=first leaves it out"),
        (Small, {"skip": ("s*", "x")}, "second", "skip=s*+x leaves it out"),
        (Small, {"embeddings": None}, "table", "embeddings=none leaves it out"),
        (Small, {"spoilt": True}, "first", "its weight first.weight holds values that are not finite"),
    ],
)
def test_refusals(module: type[nn.Module], options: dict[str, Any], site: str, reason: str) -> None:
    torch.manual_seed(0)
    one = captured(module().eval(), indices=indices())
    if options.pop("spoilt", False):
        spoil(one)
    context = PassContext(Target.parse("cpu"), Dataset("examples", (), ()))
    _, result = apply_graft(Quantize(**options), one, (), context)
    found = {refusal.name: refusal.reason for refusal in result.refusals}
    assert found[site] == reason


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(8, 64, 3, padding="same", bias=False), (2, 8, 20)),
        (nn.Conv2d(8, 32, 3, stride=2, padding=1, groups=2, dilation=(1, 2)), (2, 8, 12, 14)),
        (nn.Conv3d(4, 16, (3, 2, 3), padding=(1, 0, 1)), (2, 4, 6, 6, 6)),
    ],
    ids=["1d", "2d", "3d"],
)
def test_a_convolution_has_int8_weights_with_a_scale_a_channel(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = captured(nn.Sequential(layer).eval(), x=x)
    after, result = apply_graft(Quantize(clip="none"), program, (), context_of(program))
    assert result.changed == ("0",)
    weight = layer.weight.detach()
    scale = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.dim() - 1)) / 127
    layer.weight.data = torch.round(weight / scale) * scale
    torch.testing.assert_close(after.run(x)[0], layer(x), rtol=1e-5, atol=1e-5)
    assert after.weights()["0.quantize.weight"].dtype == torch.int8


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bits": "4", "activations": "dynamic"}, "4-bit weights have no kernel for quantized activations"),
        ({"bits": "auto-3", "activations": "rows"}, "auto-3-bit weights have no kernel for quantized activations"),
        ({"bits": "3"}, "bits=3 is none of 8, 4, 2 and auto-N with N from 2 to 8"),
        ({"bits": "auto-1.5"}, "bits=auto-1.5 is none of 8, 4, 2 and auto-N with N from 2 to 8"),
        ({"bits": "auto-few"}, "bits=auto-few is none of 8, 4, 2 and auto-N with N from 2 to 8"),
    ],
)
def test_options_that_do_not_fit_are_an_error(options: dict[str, str], problem: str) -> None:
    with pytest.raises(CompilerError, match=re.escape(problem)):
        build(Quantize, options)
