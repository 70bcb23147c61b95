"""Quantized operators one by one against ONNX Runtime: those on codes, products, tables, and what is refused."""

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

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.model_file import prepared
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.program import Dimension, Program
from tests.lowered_program import LoweredProgram

Array = np.ndarray[Any, Any]
MICROSOFT = "com.microsoft"
GENERATOR = np.random.default_rng(0)


def codes(*shape: int, dtype: type = np.uint8) -> Array:
    info = np.iinfo(dtype)
    return GENERATOR.integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Every test draws the same numbers, whichever ran before it in its process."""
    GENERATOR.bit_generator.state = np.random.default_rng(0).bit_generator.state


def scale(value: float) -> Array:
    return np.float32(value)


def model_of(nodes: list[onnx.NodeProto], inputs: dict[str, Array], stored: dict[str, Array], opset: int) -> bytes:
    """A model whose inputs have the dynamic first dim `batch`."""
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), ["batch", *one.shape[1:]])
        for name, one in inputs.items()
    ]
    held = [numpy_helper.from_array(np.asarray(one), name) for name, one in stored.items()]
    graph = helper.make_graph(nodes, "one", given, [onnx.ValueInfoProto(name=nodes[-1].output[0])], held)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return serialized


def imported(model: bytes) -> Program:
    return program_from_onnx(
        prepared("reading one", ir.serde.deserialize_model(onnx.ModelProto.FromString(model))),
        doing="reading one",
        source="one.onnx",
    )


def both(
    nodes: list[onnx.NodeProto], inputs: dict[str, Array], stored: dict[str, Array], opset: int = 21
) -> tuple[Array, Array]:
    """What we give and what ONNX Runtime gives, at a batch that the model was not read with."""
    model = model_of(nodes, inputs, stored, opset)
    (expected,) = onnxruntime.InferenceSession(model).run(None, inputs)
    program = imported(model)
    assert all(isinstance(spec.shape[0], Dimension) for spec in program.inputs)
    (found,) = program.run(*(torch.from_numpy(one) for one in inputs.values()))
    assert found.numpy().dtype == expected.dtype
    assert found.shape == expected.shape
    return found.numpy(), expected


X, Y = codes(5, 8, 6, 6), codes(5, 8, 6, 6)
PAIR = ["x", "xs", "xz"]
STORED = {
    "xs": scale(0.02), "xz": np.uint8(120), "ys": scale(0.03), "yz": np.uint8(7), "zs": scale(0.0413),
    "zz": np.uint8(99),
}  # fmt: skip
OUT = ["zs", "zz"]
ON_CODES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "QLinearAdd": ([*PAIR, "y", "ys", "yz", *OUT], {}),
    "QLinearMul": ([*PAIR, "y", "ys", "yz", *OUT], {}),
    "QLinearSigmoid": ([*PAIR, *OUT], {}),
    "QLinearLeakyRelu": ([*PAIR, *OUT], {"alpha": 0.1}),
    "QLinearGlobalAveragePool": ([*PAIR, *OUT], {}),
    "QLinearAveragePool": ([*PAIR, *OUT], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "QLinearConcat": ([*OUT, *PAIR, "y", "ys", "yz"], {"axis": 1}),
    "QLinearSoftmax": ([*PAIR, *OUT], {"axis": -1, "opset": 13}),
}


@pytest.mark.parametrize("op_type", ON_CODES)
def test_operators_on_codes(op_type: str) -> None:
    names, attributes = ON_CODES[op_type]
    inputs = {name: one for name, one in {"x": X, "y": Y}.items() if name in names}
    stored = {name: one for name, one in STORED.items() if name in names}
    if op_type == "QLinearSoftmax":
        stored["zs"] = scale(1 / 256)
        stored["zz"] = np.uint8(0)
    node = helper.make_node(op_type, names, ["out"], domain=MICROSOFT, **attributes)
    ours, theirs = both([node], inputs, stored)
    assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 1
    assert float((ours != theirs).mean()) < 0.02


@pytest.mark.parametrize("per_channel", [False, True])
def test_convolutions_of_codes(per_channel: bool) -> None:
    count = 6 if per_channel else 1
    stored = {
        "xs": scale(0.02), "xz": np.uint8(120), "w": codes(6, 8, 3, 3, dtype=np.int8),
        "ws": np.linspace(0.001, 0.002, count, dtype=np.float32), "wz": np.zeros(count, np.int8), "zs": scale(0.05),
        "zz": np.uint8(99), "b": GENERATOR.integers(-9999, 9999, 6).astype(np.int32),
    }  # fmt: skip
    names = [*PAIR, "w", "ws", "wz", *OUT, "b"]
    node = helper.make_node("QLinearConv", names, ["out"], pads=[1, 0, 1, 2], strides=[2, 1])
    ours, theirs = both([node], {"x": X}, stored, opset=10)
    assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 1
    assert float((ours != theirs).mean()) < 0.01


@pytest.mark.parametrize("quantized_output", [False, True])
def test_gemm_of_codes(quantized_output: bool) -> None:
    stored = {
        "xs": scale(0.02), "xz": np.uint8(120), "w": codes(7, 9, dtype=np.int8), "ws": scale(0.01), "wz": np.int8(0),
        "b": GENERATOR.integers(-999, 999, 7).astype(np.int32), "zs": scale(0.05), "zz": np.uint8(99),
    }  # fmt: skip
    names = [*PAIR, "w", "ws", "wz", "b", *(OUT if quantized_output else [])]
    stored = {name: one for name, one in stored.items() if name in names}
    node = helper.make_node("QGemm", names, ["out"], domain=MICROSOFT, transB=1, alpha=1.0)
    ours, theirs = both([node], {"x": codes(5, 9)}, stored)
    rounding = 1e-6 * np.abs(theirs.astype(float)).max()  # of float sums, whose terms cancel in some places
    atol = 1 if quantized_output else rounding
    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=1e-6, atol=atol)


def dynamic_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["product"], name="/layer/MatMul_quant"),
        helper.make_node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["both"]),
        helper.make_node("Mul", ["wide", "both"], ["scaled"]),
        helper.make_node("Add", ["b", "scaled"], ["out"]),
    ]


@pytest.mark.parametrize("weights", ["int8", "per channel", "zero point", "uint8"])
def test_dynamic_products(weights: str) -> None:
    unsigned = weights == "uint8"
    zero = {"zero point": np.int8(3), "uint8": np.uint8(130)}.get(weights, np.int8(0))
    stored = {
        "w": codes(40, 7, dtype=np.uint8 if unsigned else np.int8), "wz": zero, "b": np.ones(7, np.float32),
        "ws": np.full(7, 0.01, np.float32) if weights == "per channel" else scale(0.01),
    }  # fmt: skip
    x = GENERATOR.standard_normal((5, 3, 40)).astype(np.float32)
    ours, theirs = both(dynamic_nodes(), {"x": x}, stored)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    program = imported(model_of(dynamic_nodes(), {"x": x}, stored, 21))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    raised = "regraft.dynamic_quantized_linear.default" in called
    assert raised == (weights in ("int8", "per channel"))
    assert raised or "regraft.matmul_integer.default" in called


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT8", "UINT8", "INT2", "UINT2"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_weights_in_blocks_become_one_product(kind: str, zero_points: bool) -> None:
    """Against the reference: ONNX Runtime rounds the activations of such products as well."""
    data_type = TensorProto.DataType.Value(kind)
    bits, signed = int(kind[-1]), kind[0] == "I"
    low = -(2 ** (bits - 1)) if signed else 0
    drawn = GENERATOR.integers(low, low + 2**bits, (48, 6))
    zeros = GENERATOR.integers(low, low + 2**bits, (3, 6))
    steps = GENERATOR.random((3, 6)).astype(np.float32)
    wide = (drawn - (np.repeat(zeros, 16, 0) if zero_points else 0)) * np.repeat(steps, 16, 0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", *(["z"] if zero_points else [])], ["d"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "d"], ["out"], name="/layer/MatMul"),
    ]
    held = [
        helper.make_tensor("w", data_type, drawn.shape, drawn.flatten().tolist()),
        numpy_helper.from_array(steps, "s"),
        *([helper.make_tensor("z", data_type, zeros.shape, zeros.flatten().tolist())] if zero_points else []),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 48])
    graph = helper.make_graph(nodes, "one", [given], [onnx.ValueInfoProto(name="out")], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    program = imported(model.SerializeToString())
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["regraft.quantized_linear.default"]
    x = torch.randn(5, 48)
    np.testing.assert_allclose(program.run(x)[0].numpy(), x.numpy() @ wide, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_a_product_of_blocks_keeps_its_accuracy_level(accuracy_level: int, tmp_path: Path) -> None:
    stored = {
        "w": codes(7, 3, 16),
        "s": np.full((7, 3), 0.1, np.float32),
        "z": codes(7, 2),
        "b": np.ones(7, np.float32),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", "z", "", "b"], ["out"], domain=MICROSOFT,
        K=90, N=7, bits=4, block_size=32, accuracy_level=accuracy_level,
    )  # fmt: skip
    x = GENERATOR.standard_normal((5, 90)).astype(np.float32)
    model = model_of([node], {"x": x}, stored, 21)
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    (found,) = LoweredProgram(imported(model), tmp_path).run(torch.from_numpy(x))
    np.testing.assert_array_equal(found, expected)


def test_a_rounding_passes_gradients() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("Reshape", ["q", "shape"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "xs", "xz"], ["out"]),
    ]
    stored = {"xs": scale(0.02), "xz": np.uint8(120), "shape": np.array([0, 1, 2])}
    x = GENERATOR.standard_normal((6, 2)).astype(np.float32)
    ours, theirs = both(nodes, {"x": x}, stored)
    np.testing.assert_array_equal(ours, theirs)
    program = imported(model_of(nodes, {"x": x}, stored, 21))
    leaf = torch.from_numpy(x).requires_grad_()
    program.graph_module(leaf)[0].sum().backward()
    assert leaf.grad is not None
    inside = (np.rint(x / 0.02) >= -120) & (np.rint(x / 0.02) <= 255 - 120)
    assert leaf.grad.tolist() == inside.astype(float).tolist()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            helper.make_node(
                "MatMulNBits",
                ["x", "w", "ws", "", "order"],
                ["out"],
                domain=MICROSOFT,
                K=40,
                N=7,
                bits=4,
                block_size=32,
            ),
            "it groups inputs by g_idx",
        ),
        (helper.make_node("DynamicQuantizeLSTM", ["x"], ["out"], domain=MICROSOFT), "1 operator is not read"),
        (
            helper.make_node("QLinearGlobalAveragePool", ["x", "ws", "wz"], ["out"], domain=MICROSOFT, channels_last=1),
            "1 operator is not read",
        ),
        (
            helper.make_node("QLinearConcat", ["ws"], ["out"], domain=MICROSOFT),
            "its quantized operators cannot be read",
        ),
        (helper.make_node("DequantizeLinear", ["order", "ws"], ["out"]), "its input is int64"),
    ],
)
def test_refusals(node: onnx.NodeProto, message: str) -> None:
    stored = {
        "w": codes(7, 2, 16), "ws": scale(0.1), "wz": np.uint8(1), "order": np.arange(40)
    }  # fmt: skip
    model = model_of([node], {"x": np.zeros((2, 40), np.float32)}, stored, 21)
    with pytest.raises(CompilerError, match=message):
        imported(model)
