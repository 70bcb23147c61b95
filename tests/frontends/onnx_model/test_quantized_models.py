"""Models that are quantized already: they go through unharmed, keep their kernels, train, and can be quantized anew."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compiler.backends.onnx_runtime.kernels import running_kernels
from compiler.compile_model import CompileResult
from compiler.frontends.onnx_model.model_file import read_model
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.grafting import apply_graft
from compiler.passes.canonicalize import Canonicalize
from compiler.passes.dequantize import Dequantize
from compiler.passes.quantize import Quantize
from compiler.pipeline import Pipeline
from compiler.program import Dimension, Program
from compiler.sites import Site, find_sites
from tests.frontends.onnx_model.quantized_by_onnxruntime import FORMS, images, quantized
from tests.lowered_program import LoweredProgram
from tests.rewrite_checks import captured, context_of

LARGEST_GROWTH = 1.05
QUANTIZED_KERNELS = (
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "GatherBlockQuantized", "ConvInteger",
    "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearSigmoid", "QLinearGlobalAveragePool",
    "DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


class Layers(nn.Module):
    """A table, a layer with a bias, one without, whose inputs fill no whole block."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 40)
        self.first, self.second = nn.Linear(40, 72), nn.Linear(72, 33, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.table(indices))))


OWN: dict[str, dict[str, Any]] = {
    "int8, dynamic activations": {"activations": "dynamic"},
    "int8, a scale a row": {"activations": "rows"},
    "int8 in blocks": {"activations": "none", "group": 32},
    "int4": {"bits": 4, "group": 32},
    "int4 with a 4-bit table": {"bits": 4, "group": 16, "embeddings": 4},
}


QUICK_OWN = ("int8, dynamic activations", "int4")
QUICK = ("dynamic", "QDQ, per channel", "QOperator")


def some_quick(forms: Iterable[str], quick: tuple[str, ...]) -> list[Any]:
    """All forms as parameters; those that say nothing new of most changes are left to `make test`."""
    return [form if form in quick else pytest.param(form, marks=pytest.mark.slow) for form in forms]


def imported(path: Path) -> Program:
    return program_from_onnx(read_model("reading", path), doing="reading", source=path.name)


def counted(kernels: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in kernels.items() if name in QUANTIZED_KERNELS}


@pytest.mark.parametrize("form", some_quick(OWN, QUICK_OWN))
def test_our_own_models_come_back_bit_for_bit(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = captured(Layers().eval(), indices=torch.randint(0, 50, (4, 6)))
    program, _ = apply_graft(Quantize(**OWN[form]), program, (), context_of(program))
    first = LoweredProgram(program, tmp_path / "first")
    again = imported(tmp_path / "first" / "model.onnx")
    second = LoweredProgram(again, tmp_path / "second")
    for rows in (1, 7):
        indices = torch.randint(0, 50, (rows, 6))
        np.testing.assert_array_equal(first.run(indices)[0], second.run(indices)[0])
    assert first.lowered.kernels == second.lowered.kernels
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("first", "second")]
    assert sizes[1] <= LARGEST_GROWTH * sizes[0]
    assert [site.name for site in find_sites(again, ("quantized",))] == ["table", "first", "second"]


@pytest.mark.slow
def test_all_minilm_in_int8_comes_back_bit_for_bit(minilm_int8: CompileResult, tmp_path: Path) -> None:
    path = minilm_int8.folder / "model.onnx"
    second = LoweredProgram(imported(path), tmp_path / "second")
    assert counted(running_kernels(path)) == counted(second.lowered.kernels)
    assert (tmp_path / "second" / "model.onnx").stat().st_size <= LARGEST_GROWTH * path.stat().st_size
    ids = torch.randint(1000, 2000, (3, 11), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = onnxruntime.InferenceSession(str(path)).run(None, {name: one.numpy() for name, one in inputs.items()})
    found = second.run(*(inputs[spec.name] for spec in second.program.inputs))
    np.testing.assert_array_equal(found[0], expected[0])


@functools.cache
def program_of(form: str, folder: Path) -> Program:
    return imported(quantized(form, folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized")


@pytest.mark.parametrize("form", some_quick(FORMS, QUICK))
def test_models_of_onnx_runtimes_tools_keep_numbers_and_kernels(form: str, folder: Path, tmp_path: Path) -> None:
    program = program_of(form, folder)
    (spec,) = program.inputs
    assert isinstance(spec.shape[0], Dimension)
    lowered = LoweredProgram(program, tmp_path / "lowered")
    path = folder / f"{form}.onnx"
    session = onnxruntime.InferenceSession(str(path))
    for count in (1, 5):
        x = images(count, seed=9)
        (expected,) = session.run(None, {"x": x})
        (found,) = lowered.run(torch.from_numpy(x))
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)
        step = 0.02 * scale  # of an activation code, where rounding in float may decide otherwise
        np.testing.assert_allclose(program.run(torch.from_numpy(x))[0].numpy(), expected, rtol=0, atol=step)
    assert counted(lowered.lowered.kernels) == counted(running_kernels(path))


@pytest.mark.parametrize("form", some_quick(["dynamic, per channel", "QDQ, 4-bit weights", "QOperator"], QUICK))
def test_weights_stay_small_in_the_file(form: str, folder: Path, tmp_path: Path) -> None:
    import onnx

    lowered = LoweredProgram(program_of(form, folder), tmp_path / "lowered")
    stored = onnx.load(lowered.folder / "model.onnx").graph.initializer
    wide = [one.name for one in stored if one.data_type == onnx.TensorProto.FLOAT and np.prod(one.dims) > 128]
    assert len(wide) == (2 if form == "dynamic, per channel" else 0)  # whose convolutions were left in float


@pytest.mark.parametrize("form", some_quick(["QDQ, per channel", "QOperator", "dynamic, per channel"], QUICK))
def test_gradients_reach_the_inputs(form: str, folder: Path) -> None:
    x = torch.from_numpy(images(2)).requires_grad_()
    program_of(form, folder).graph_module(x)[0].square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("form", some_quick(["dynamic", "QDQ", "QOperator"], QUICK))
def test_quantizing_anew(form: str, folder: Path, tmp_path: Path) -> None:
    program = program_of(form, folder)
    passes = [Dequantize(), Canonicalize(), Quantize(bits=4, group=32)]
    after, _, records = Pipeline(passes, context_of(program)).run(program)
    grafted = [one for one in records[-1].result.outcomes if one.state == "grafted" and one.kind == "linear"]
    assert len(grafted) == 2
    assert not [one for one in find_sites(after, ("quantized-activation",)) if isinstance(one, Site)]
    evidence = records[-1].result.evidence
    assert evidence is not None
    assert evidence.fidelity is not None
    assert 0.9 < evidence.fidelity.mean_cosine < 1
    lowered = LoweredProgram(after, tmp_path / "lowered")
    assert lowered.lowered.kernels["MatMulNBits"] == 2
    x = torch.from_numpy(images(5, seed=9))
    expected = program.run(x)[0].numpy()
    assert float(np.abs(lowered.run(x)[0] - expected).max() / np.abs(expected).max()) < 0.2


@pytest.mark.parametrize("form", ["dynamic", "QDQ, per channel"])
def test_sites_are_named_after_the_nodes(form: str, folder: Path) -> None:
    names = [site.name for site in find_sites(program_of(form, folder), ("quantized",))]
    assert {"head", "last"} <= {name.partition(".")[0] for name in names}
