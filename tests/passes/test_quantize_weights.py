"""quantize-weights: every format in a Program and in ONNX Runtime, what is simulated, the budget, every refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lowered_program import CPU, LoweredProgram
from rewrite_checks import captured, context_of, shipped_formats
from torch import Tensor, nn

from compiler.backends.eager import Eager
from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.grafting import apply_graft
from compiler.passes.dequantize import Dequantize
from compiler.passes.quantize_weights import QuantizeWeights
from compiler.program import Program
from compiler.registry import Registry
from compiler.rewriting import PassContext, PassResult

FORMATS = sorted(shipped_formats())
ALLOWED = {"int8": 0.02, "mxint8": 0.02, "fp8-e4m3": 0.06, "fp8-e5m2": 0.12, "int4": 0.15, "nf4": 0.2, "mxfp4": 0.25,
           "int3": 0.35, "int2": 0.8, "ternary": 0.9, "ternary-base3": 0.9}  # fmt: skip
"""Of the size of the outputs, with tables and two layers in the format and inputs of which each says something else."""
KERNELS = {"int8": 8, "mxint8": 8, "mxfp4": 8, "int4": 4, "int3": 4, "int2": 2, "ternary": 2, "ternary-base3": 2}
"""Bits with which MatMulNBits runs."""
WIDTH, INNER = 256, 520


class Small(nn.Module):
    """A table, a layer with a bias, and one without, whose inputs fill no whole block."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, INNER), nn.Linear(INNER, 48, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.table(indices))))


class Tied(nn.Module):
    """A table that is the weight of the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 64)

    def forward(self, indices: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.table(indices)), self.table.weight)


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def indices(seed: int = 0) -> Tensor:
    return torch.randint(0, 60, (4, 6), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return captured(Small().eval(), indices=indices())


def lowering_context(program: Program, **settings: Any) -> PassContext:
    return replace(context_of(program), backend=OnnxRuntime(), **settings)


def grafted(program: Program, context: PassContext | None = None, **options: Any) -> tuple[Program, PassResult]:
    return apply_graft(QuantizeWeights(**options), program, (), context or context_of(program))


def error(found: Program, expected: Program) -> float:
    (ours,), (theirs,) = found.run(indices(1)), expected.run(indices(1))
    return float((ours - theirs).norm() / theirs.norm())


def called(program: Program) -> list[str]:
    return [str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"]


def test_the_graph_before_and_after(program: Program) -> None:
    assert called(program) == ["embedding", "linear", "relu", "linear"]
    after, result = grafted(program, format="int3", symmetric=True)
    codes = [name for name in called(after) if name in ("repack_codes", "quantized_linear", "relu")]
    three = ["repack_codes", "quantized_linear"]
    assert codes == ["repack_codes", *three, "relu", *three], "rows of the table come first"
    assert result.changed == ("table", "first", "second")
    shapes = {name: (str(value.dtype), tuple(value.shape)) for name, value in after.weights().items()}
    assert shapes["first.quantize_weights.weight"] == ("torch.uint8", (INNER, 8, 12))
    assert shapes["second.quantize_weights.weight"] == ("torch.uint8", (48, 17, 12))
    assert shapes["table.quantize_weights.weight"] == ("torch.uint8", (60, 8, 12))
    assert not any(name in shapes for name in ("first.weight", "second.weight", "table.weight"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_onnx_runtime(program: Program, name: str, tmp_path: Path) -> None:
    """Numbers near the float ones; the same in the session, but for rounded inputs; no float weight in the file."""
    after, result = grafted(program, lowering_context(program, allow_simulated=True), format=name)
    assert result.changed == ("table", "first", "second")
    assert 1e-4 < error(after, program) < ALLOWED[name]
    lowered = LoweredProgram(after, tmp_path)
    kernels = lowered.lowered.kernels
    assert kernels.get("MatMulNBits", 0) == (2 if name in KERNELS else 0)
    assert kernels.get("MatMul", 0) + kernels.get("Gemm", 0) + kernels.get("FusedMatMul", 0) == (
        0 if name in KERNELS else 2
    )
    largest = float(after.run(indices(1))[0].abs().max())
    assert lowered.largest_error(indices(1)) < (0.02 if name in KERNELS else 1e-5) * largest
    weight_count = 60 * WIDTH + WIDTH * INNER + INNER * 48
    bits = {"ternary-base3": 2.0, "ternary": 2.1, "int3": 4.0}.get(name, 8.0 if "8" in name else 4.0 + 0.8)
    spare = 24_000  # nodes, names and padding of three small layers
    assert (tmp_path / lowered.lowered.entry).stat().st_size < weight_count * (bits + 0.3) / 8 + spare
    simulated = [one.site for one in result.outcomes if "unpacked to float when it runs" in one.note]
    assert simulated == ([] if name in KERNELS else ["first", "second"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_without_a_kernel_is_refused_unless_it_may_be_simulated(program: Program, name: str) -> None:
    _, result = grafted(program, lowering_context(program), format=name)
    if name in KERNELS:
        assert result.changed == ("table", "first", "second")
        return
    assert result.changed == ("table",), "rows are gathered as they are packed"
    assert [one.name for one in result.refusals] == ["first", "second"]
    assert "onnx_runtime has no kernel for it" in result.refusals[0].reason
    assert "--allow-simulated" in result.refusals[0].reason
    assert grafted(program, replace(context_of(program), backend=Eager()), format=name)[1].changed[1:] == (
        "first",
        "second",
    )


def test_compensated_rounding_is_nearer_on_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    x = x + 0.1 * torch.randn(400, 64, generator=generator)
    torch.manual_seed(0)
    program = captured(nn.Sequential(nn.Linear(64, 48)).eval(), input=x)
    expected = program.run(x)[0]
    errors = {}
    for rounding in ("compensated", "nearest"):
        after, _ = grafted(program, format="mxfp4", rounding=rounding)
        errors[rounding] = float((after.run(x)[0] - expected).square().mean())
    assert errors["compensated"] < 0.6 * errors["nearest"]


def test_rotation_helps_where_weights_stand_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 64)
    with torch.no_grad():
        layer.weight[:, ::16] *= 12
    x = torch.randn(300, 128)
    program = captured(nn.Sequential(layer).eval(), input=x)
    expected, errors = program.run(x)[0], {}
    for rotate in (None, 32):
        after, result = grafted(program, format="int4", symmetric=True, clip="none", rotate=rotate, rounding="nearest")
        errors[rotate] = float((after.run(x)[0] - expected).norm() / expected.norm())
    assert errors[32] < 0.75 * errors[None]
    assert "inputs rotated by 32" in result.outcomes[0].note
    assert LoweredProgram(after, tmp_path).largest_error(x) < 0.02 * float(expected.abs().max())


def test_rotation_moves_nothing_but_rounding(program: Program) -> None:
    after, _ = grafted(program, format="int8", rotate=8, block=16)
    assert error(after, program) < 0.02


@pytest.mark.parametrize("name", ["int4", "int3", "mxfp4"])
def test_a_table_and_its_head_share_their_codes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied = captured(Tied().eval(), indices=indices())
    after, result = grafted(tied, lowering_context(tied), format=name)
    assert len(result.changed) == 2
    held = [value for value in after.weights().values() if value.numel() > 600]
    assert len({id(value) for value in held}) == 1
    lowered = LoweredProgram(after, tmp_path)
    largest = float(after.run(indices())[0].abs().max())
    assert lowered.largest_error(indices()) < 0.02 * largest


def test_a_convolution_is_simulated_or_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 6)
    program = captured(Convolving().eval(), x=x)
    refused = grafted(program, lowering_context(program), format="int4")[1]
    assert "has no kernel" in refused.refusals[0].reason
    after, result = grafted(program, lowering_context(program, allow_simulated=True), format="int4")
    assert "unpacked to float" in result.outcomes[0].note
    expected = program.run(x)[0]
    assert 1e-3 < float((after.run(x)[0] - expected).norm() / expected.norm()) < 0.15
    assert LoweredProgram(after, tmp_path).largest_error(x) < 1e-5 * float(expected.abs().max())


def test_the_budget_takes_gentler_formats(program: Program) -> None:
    context = replace(lowering_context(program), max_drop=1.0)
    proposals = list(QuantizeWeights(format="ternary").propose_all(sites(program), program, context))
    notes = []
    rung = proposals[1]
    while rung.gentler is not None:
        notes.append(rung.note)
        rung = rung.gentler()
    assert [note.split()[0] for note in [*notes, rung.note]] == ["ternary", "int4", "int8"]


def sites(program: Program) -> list[Any]:
    from compiler.sites import find_sites

    return list(find_sites(program, QuantizeWeights.site_kinds))


def test_layers_and_embeddings_choose(program: Program) -> None:
    assert grafted(program, layers="second")[1].changed == ("second",)
    assert grafted(program, layers="not-second", embeddings="none")[1].changed == ("first",)
    after, result = grafted(program, format="int3", embeddings="int8")
    assert [one.note.split()[0] for one in result.outcomes] == ["int8", "int3", "int3"]
    assert "quantized_embedding" in called(after)


def test_what_is_packed_is_quantized_already_and_comes_back(program: Program) -> None:
    after, _ = grafted(program, format="int3", embeddings="none")
    again = grafted(after, format="int4", embeddings="none")[1]
    assert [one.reason for one in again.refusals[:1]] == ["embeddings=none leaves it out"]
    assert {one.name: one.reason for one in again.refusals}["first"] == "it is quantized already: run dequantize first"
    restored, _ = apply_graft(Dequantize(), after, (), context_of(after))
    assert called(restored) == ["embedding", "linear", "relu", "linear"]
    torch.testing.assert_close(restored.run(indices())[0], after.run(indices())[0])


def test_refusals(program: Program) -> None:
    small = captured(nn.Sequential(nn.Linear(24, 24)).eval(), input=torch.randn(4, 24))
    assert "too few" in grafted(small)[1].refusals[0].reason
    narrow = grafted(program, rotate=32, embeddings="none")[1]
    assert "rotate=32 does not divide its 520 inputs" in [one.reason for one in narrow.refusals]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "int5x"}, "there is no format 'int5x'"),
        ({"embeddings": "int44"}, "there is no format 'int44'"),
        ({"format": "mxfp4", "block": 64}, "has blocks of 32, not 64"),
        ({"format": "nf4", "symmetric": False}, "no zero points"),
        ({"format": "fp8-e4m3", "block": 12}, "no multiple of 8"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(CompilerError, match=said):
        QuantizeWeights(**options).check(Registry(entry_points=False))


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="no power of two"):
        QuantizeWeights(rotate=24)


def test_the_backend_that_runs_by_definition_serves_every_format(program: Program, tmp_path: Path) -> None:
    after, _ = grafted(program, format="ternary-base3")
    assert Eager().lower(after, CPU, tmp_path).entry == "program.pt2"
