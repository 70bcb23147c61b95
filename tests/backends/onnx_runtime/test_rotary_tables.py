"""Tables of cosines and sines are found to be of frequencies, which are stored in their place."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import zoo
from decoding_checks import Decoder, passed, run_onnx, run_program

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.backends.onnx_runtime.graph_passes.rotary_tables import frequencies, store_rotary_frequencies
from compiler.program import Program
from compiler.target import Target

POSITIONS = 4096


def stretched(frequency: float) -> float:
    """As Llama 3 stretches its longer waves: factor 8, from 8,192 positions on, smooth in between."""
    length = 2 * math.pi / frequency
    smooth = min(1.0, max(0.0, (8192 / length - 1) / (4 - 1)))
    return (1 - smooth) * frequency / 8 + smooth * frequency


def waves(theta: float, count: int, *, stretch: bool) -> torch.Tensor:
    """theta ** (-2 i / d), one at a time."""
    plain = [theta ** (-i / count) for i in range(count)]
    return torch.tensor([stretched(one) if stretch else one for one in plain])


def tables(wave: torch.Tensor, positions: int) -> tuple[np.ndarray, np.ndarray]:
    angles = torch.arange(positions).float()[:, None] * wave
    return angles.cos().numpy(), angles.sin().numpy()


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize(("theta", "positions"), [(1e4, 2), (1e4, 8192), (1e6, 5000), (5e5, 131072)])
def test_frequencies_are_found(theta: float, positions: int, stretch: bool) -> None:
    wave = waves(theta, 32, stretch=stretch)
    cos, sin = tables(wave, positions)
    found = frequencies(cos, sin)
    assert found is not None
    fast = wave.numpy() * positions > 4  # whose last angles tell neighbouring numbers apart
    np.testing.assert_array_equal(found[fast], wave.numpy()[fast])
    np.testing.assert_allclose(found, wave, rtol=1e-6)
    angles = np.arange(positions, dtype=np.float32)[:, None] * found
    np.testing.assert_allclose(np.cos(angles.astype(np.float64)), cos, rtol=0, atol=3e-7)
    np.testing.assert_allclose(np.sin(angles.astype(np.float64)), sin, rtol=0, atol=3e-7)


def test_other_tables_have_none() -> None:
    cos, sin = tables(waves(1e4, 8, stretch=False), POSITIONS)
    moved = cos.copy()
    moved[1000, 3] += 1e-5
    holed = cos.copy()
    holed[7, 0] = np.nan
    drawn = np.random.default_rng(0).uniform(-1, 1, cos.shape).astype(np.float32)
    for other in (moved, holed, drawn, 1.1 * cos, cos[:1]):
        assert frequencies(other.astype(np.float32), sin[: len(other)]) is None
    assert frequencies(cos, sin[:, :4]) is None


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_onnx_runtime_computes_the_tables_that_were_stored(scale: float) -> None:
    """At 131,072 positions too, where angles are large."""
    cos, sin = (scale * one for one in tables(waves(5e5, 8, stretch=True), 131072))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, "tokens", 16]))
    places = ir.Value(name="places", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "tokens"]))
    stored = [ir.Value(name=name, const_value=ir.Tensor(one, name=name)) for name, one in (("c", cos), ("s", sin))]
    turned = ir.node("RotaryEmbedding", [x, *stored, places], attributes={"num_heads": 1})
    (y,) = turned.outputs
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x, places], [y], nodes=[turned], initializers=stored, opset_imports={"": 23})
    assert store_rotary_frequencies(graph) == 1
    assert "c" not in graph.initializers
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ones = np.concatenate([np.ones((1, 131072, 8), np.float32), np.zeros((1, 131072, 8), np.float32)], -1)
    (found,) = session.run(None, {"x": ones, "places": np.arange(131072)[None]})
    np.testing.assert_allclose(found[0], np.concatenate([cos, sin], -1), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def program() -> Program:
    return passed(zoo.captured("qwen3"), f"make-incremental:context={POSITIONS}")


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_a_decoder_gives_the_same_without_its_tables(program: Program, tmp_path: Path, scale: float) -> None:
    """Also where the tables are scaled, as those of stretched contexts are."""
    program = program.copy()
    names = [name for name, one in program.weights().items() if one.shape[:1] == (POSITIONS,)]
    assert len(names) == 2
    for name in names:
        program.set_weight(name, scale * program.weight(name), trainable=False)
    ours = Decoder(program, run_onnx(program, tmp_path), 1, 48)
    theirs = Decoder(program, run_program(program), 1, 48)
    tokens = torch.randint(4, 99, (1, 40), generator=torch.Generator().manual_seed(3))
    for count in (24, 1, 15):
        piece, tokens = tokens[:, :count], tokens[:, count:]
        torch.testing.assert_close(ours.read(piece), theirs.read(piece), rtol=1e-4, atol=1e-4)
    stored = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert not [one.name for one in stored.graph.initializer if one.dims and one.dims[0] == POSITIONS]
    assert sum(one.op_type in ("Cos", "Sin") for one in stored.graph.node) == 2
    lowered = OnnxRuntime().lower(program, Target.parse("cpu"), tmp_path)
    assert not lowered.kernels.keys() & {"Cos", "Sin", "Range"}, "tables are computed when the file is opened"
