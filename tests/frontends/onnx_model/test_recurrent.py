"""Recurrent layers: any length, layouts, training; and torch's layers written as ONNX's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.frontends.torch_export import capture
from compiler.program import Program
from compiler.target import Target

WIDTH, HIDDEN = 4, 3
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent_model(kind: str, version: int = 14, **attributes: Any) -> onnx.ModelProto:
    """One layer over x [length, batch, 4] with stored weights."""
    random = np.random.default_rng(3)
    count, gates = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[kind]
    stored = {
        "w": random.standard_normal((count, gates * HIDDEN, WIDTH)),
        "r": random.standard_normal((count, gates * HIDDEN, HIDDEN)),
        "b": random.standard_normal((count, 2 * gates * HIDDEN)),
    }
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w", "r", "b"], ["y", "last"], hidden_size=HIDDEN, **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", "batch", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "last")],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def read(model: onnx.ModelProto) -> Program:
    """The model as a Program, its dims symbolic."""
    return program_from_onnx(ir.serde.deserialize_model(model), doing="reading", source="test")


def lowered_outputs(program: Program, inputs: dict[str, Any], folder: Path) -> list[Any]:
    """What ONNX Runtime gives for the program as our backend writes it."""
    entry = OnnxRuntime().lower(program, Target("cpu"), folder).entry
    return list(onnxruntime.InferenceSession(folder / entry).run(None, inputs))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("version", [7, 14])
def test_length_and_batch_stay_free(kind: str, direction: str, version: int, tmp_path: Path):
    model = recurrent_model(kind, version, direction=direction)
    program = read(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for index, sizes in enumerate([(9, 5), (1, 2)]):
        x = np.random.default_rng(1).standard_normal((*sizes, WIDTH)).astype(np.float32)
        folder = tmp_path / str(index)
        folder.mkdir()
        lowered = lowered_outputs(program, {"x": x}, folder)
        for expected, ours, theirs in zip(
            session.run(None, {"x": x}), program.run(torch.from_numpy(x)), lowered, strict=True
        ):
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(theirs, expected, rtol=1e-6, atol=1e-6)


def test_weights_keep_their_names_and_train():
    program = read(recurrent_model("LSTM"))
    assert set(program.weights()) == {"w", "r", "b"}
    program.graph_module(torch.randn(6, 2, WIDTH))[0].sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in program.weights().values())


def test_layout_1_is_batch_first():
    x = torch.randn(2, 5, WIDTH)
    first, last = read(recurrent_model("GRU", layout=1)).run(x)
    expected, expected_last = read(recurrent_model("GRU")).run(x.transpose(0, 1))
    torch.testing.assert_close(first, expected.permute(2, 0, 1, 3))
    torch.testing.assert_close(last, expected_last.transpose(0, 1))


def test_a_wrong_number_of_activations_is_refused():
    with pytest.raises(CompilerError, match="1 activations for forward"):
        read(recurrent_model("GRU", activations=["Tanh"]))


class LayersAndStates(torch.nn.Module):
    """Gives what a recurrent module gives in one flat tuple."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> Any:
        y, states = self.layers(x)
        return (y, *states) if isinstance(states, tuple) else (y, states)


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch, of its own recurrent modules
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_torch_layers_become_one_node_each(kind: Any, bidirectional: bool, tmp_path: Path):
    torch.manual_seed(0)
    module = LayersAndStates(kind(WIDTH, HIDDEN, 2, bidirectional=bidirectional, batch_first=True).eval())
    x = torch.randn(3, 5, WIDTH)
    program = capture(module, {"x": x}, source="layers", dynamic={"x": {0: "batch"}})
    found = lowered_outputs(program, {"x": x.numpy()}, tmp_path)
    (written,) = tmp_path.glob("*.onnx")
    assert [node.op_type for node in onnx.load(written).graph.node].count(kind.__name__) == 2
    for ours, expected in zip(found, module(x), strict=True):
        np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch, of its own kernel
def test_an_lstm_with_projections_is_refused(tmp_path: Path):
    module = LayersAndStates(torch.nn.LSTM(WIDTH, HIDDEN, proj_size=2).eval())
    program = capture(module, {"x": torch.randn(5, 3, WIDTH)}, source="layers", dynamic={"x": {1: "batch"}})
    with pytest.raises(CompilerError, match="an LSTM with projections"):
        lowered_outputs(program, {}, tmp_path)
