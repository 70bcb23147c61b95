"""Files that are damaged, hostile or merely odd: one clear line each, and nothing of their claimed size is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions
from compiler.frontends.onnx_model import OnnxModel
from compiler.program import Program

Change = Callable[[onnx.ModelProto], object]


def linear_model(width: int = 8) -> onnx.ModelProto:
    """relu(x @ w + b), float32[batch, width]."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((width, width)), "b": random.standard_normal(width)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
            helper.make_node("Add", ["product", "b"], ["sum"], name="sum"),
            helper.make_node("Relu", ["sum"], ["y"], name="relu"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    """The model in a file."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def load(path: Path) -> Program:
    """What the frontend makes of a file."""
    assert OnnxModel().accepts(str(path))
    return OnnxModel().load(str(path), LoadOptions())


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    program = load(saved(tmp_path, linear_model()))
    assert [str(spec) for spec in (*program.inputs, *program.outputs)] == [
        "x: float32[batch, 8]",
        "y: float32[batch, 8]",
    ]
    assert set(program.weights()) == {"w", "b"}


def claim_a_hundred_gigabytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [250_000, 100_000]


def claim_in_numbers(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 64)
    tensor.dims[:] = [250_000, 100_000]


def hold_too_much(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [0, 8]


def ask_for_a_hundred_gigabytes(model: onnx.ModelProto) -> None:
    sizes = numpy_helper.from_array(np.array([250_000, 100_000, 1, 8]), "sizes")
    model.graph.initializer.append(sizes)
    model.graph.node.append(helper.make_node("Expand", ["sum", "sizes"], ["wide"], name="wide"))
    model.graph.node.append(helper.make_node("ReduceSum", ["wide"], ["total"], name="total"))
    model.graph.output[0].name = "total"


def close_a_cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def mix_types(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.arange(64).reshape(8, 8), "w")
    model.graph.initializer[0].CopyFrom(tensor)


def drop_a_weight(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]


def read_nothing(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def negate_a_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -8


def change_an_attribute(model: onnx.ModelProto) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["sum"], name="sum", alpha="much")
    model.graph.node[1].CopyFrom(node)


def use_the_future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def use_the_unknown(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Relux"
    model.graph.node[1].domain = "org.example"


def pass_strings(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def forget_the_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (claim_a_hundred_gigabytes, r"tensor 'w' states 100,000,000,000 bytes and 256 are there"),
        (claim_in_numbers, r"tensor 'w' states 100,000,000,000 bytes"),
        (hold_too_much, r"tensor 'w' does not decode"),
        (ask_for_a_hundred_gigabytes, r"a result would take [\d,.]+ GB"),
        (close_a_cycle, "cycle"),
        (mix_types, r"MatMul fails: .* \(at product\)"),
        (drop_a_weight, "'w', which nothing computes"),
        (read_nothing, "'nowhere', which nothing computes"),
        (negate_a_size, r"tensor 'w' states the shape \[-8, 8\]"),
        (change_an_attribute, r"Gemm"),
        (use_the_future, "opset 99 is newer than 28"),
        (use_the_unknown, r"2 operators .*: Relux \(1, first 'relu'\), org\.example\.Add \(1, first 'sum'\)"),
        (pass_strings, "input 'x' is .*string"),
        (forget_the_shape, "the model gives no shape for input 'x'"),
    ],
)
def test_damage_is_one_clear_line(change: Change, problem: str, tmp_path: Path) -> None:
    model = linear_model()
    change(model)
    with pytest.raises(CompilerError, match=problem) as caught:
        load(saved(tmp_path, model))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("keep", [0, 1, 10, 100, -1])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    path = saved(tmp_path, linear_model())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CompilerError, match="no ONNX model"):
        load(path)


def test_a_file_that_is_no_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"PK\x03\x04" + os.urandom(200))
    with pytest.raises(CompilerError, match="no ONNX model"):
        load(path)


def with_external_data(folder: Path, location: str = "weights.bin", *, write: bool = True, offset: int = 0) -> Path:
    """The model with its matrix in another file."""
    model = linear_model()
    tensor = model.graph.initializer[0]
    if write:
        (folder / location).write_bytes(b"\0" * offset + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": str(offset), "length": "256"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return saved(folder, model)


def test_external_data_is_mapped(tmp_path: Path) -> None:
    program = load(with_external_data(tmp_path, offset=4096))
    before = (tmp_path / "weights.bin").read_bytes()
    expected = numpy_helper.to_array(linear_model().graph.initializer[0])
    weight = program.weights()["w"]
    np.testing.assert_array_equal(weight.detach().numpy(), expected)
    with torch.no_grad():
        weight.zero_()
    assert (tmp_path / "weights.bin").read_bytes() == before, "training must not write into the user's file"


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "inner/../../weights.bin", "linked.bin"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(256))
    (folder / "linked.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(CompilerError, match="outside the model's folder"):
        load(with_external_data(folder, location, write=False))


def test_external_data_that_is_missing_or_short(tmp_path: Path) -> None:
    path = with_external_data(tmp_path, write=False)
    with pytest.raises(CompilerError, match=r"the file 'weights\.bin' with tensor 'w' is missing"):
        load(path)
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    with pytest.raises(CompilerError, match=r"'w' states 256 bytes and 100 are there"):
        load(path)


def slice_model() -> onnx.ModelProto:
    """x[:, :count] with an input that says how many."""
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "zero", "count", "one"], ["y"], name="slice")],
        "slice",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8]),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(np.array([number]), name) for name, number in {"zero": 0, "one": 1}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_an_input_that_decides_a_shape_is_fixed_by_the_user(tmp_path: Path) -> None:
    path = saved(tmp_path, slice_model())
    with pytest.raises(CompilerError, match="known only when the model runs") as caught:
        load(path)
    assert "--input count=..." in caught.value.hint
    program = OnnxModel().load(str(path), LoadOptions(inputs=("count=[3]",)))
    assert [str(spec) for spec in program.inputs] == ["x: float32[batch, 8]"]
    assert program.notes == ["input 'count' is fixed at [3]"]
    x = torch.randn(5, 8)
    torch.testing.assert_close(program.run(x)[0], x[:, :3], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("cuont=[3]", "the model has no input 'cuont'"),
        ("count=3", "input 'count' has rank 1, not 0"),
        ("x=float64[batch,8]", "input 'x' is float in the model"),
        ("x=float32[batch,8,1]", "input 'x' has rank 2, not 3"),
        ("y=float32[8]", "the model has no input 'y'"),
    ],
)
def test_statements_that_do_not_fit(said: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match=problem):
        OnnxModel().load(str(saved(tmp_path, slice_model())), LoadOptions(inputs=(said,)))


def test_names_words_and_metadata_survive(tmp_path: Path) -> None:
    model = linear_model()
    model.doc_string = "A layer."
    helper.set_model_props(model, {"names": "cat,dog", "stride": "32"})
    model.graph.input[0].name = model.graph.node[0].input[0] = "serving_default_x:0"
    model.graph.output[0].name = model.graph.node[2].output[0] = "Partitioned/y:1"
    program = load(saved(tmp_path, model))
    assert (program.inputs[0].name, program.outputs[0].name) == ("serving_default_x:0", "Partitioned/y:1")
    assert program.description == "A layer."
    assert program.metadata == {"names": "cat,dog", "stride": "32"}
