"""Casts between all element types, against ml_dtypes and ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from backend_cases import run_lowered
from node_comparison import OneNode

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.casting import converted, float4_codes, float4_of_codes

NUMBERS = np.array(
    [0.0, -0.3, 0.25, 0.75, 1.25, 2.5, -3.5, 5.0, 7.9, -8.0, 100.0, 460.0, 470.0, 1e6, -1e6, 1e-9, np.inf, -np.inf],
    dtype=np.float32,
)
FLOAT8 = {
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
    "FLOAT8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
TYPES = onnx.TensorProto


def read(x: np.ndarray, op: str = "Cast", opset: int = 25, **attributes: object) -> torch.Tensor:
    """What a node gives for `x`."""
    program = OneNode(op, [x], attributes, domain="", opset=opset).program()
    return program.run(torch.from_numpy(x))[0]


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_saturates_or_not(name: str):
    dtype = FLOAT8[name]
    limits = ml_dtypes.finfo(dtype)
    for saturate, expected in ((1, np.clip(NUMBERS, limits.min, limits.max)), (0, NUMBERS)):
        found = read(NUMBERS, to=getattr(TYPES, name), saturate=saturate).float()
        np.testing.assert_array_equal(found.numpy(), expected.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize("saturate", [0, 1])
def test_float8_inside_a_lowered_model(name: str, saturate: int):
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["small"], to=getattr(TYPES, name), saturate=saturate),
        onnx.helper.make_node("Cast", ["small"], ["y"], to=TYPES.FLOAT),
    ]
    node = OneNode("Identity", [NUMBERS], domain="", opset=25)
    del node.proto.graph.node[:]
    node.proto.graph.node.extend(nodes)
    node.proto.graph.input[0].name, node.proto.graph.output[0].name = "x", "y"
    node.inputs = {"x": NUMBERS}
    program = node.program()
    (found,) = run_lowered(program, [torch.from_numpy(NUMBERS)])
    np.testing.assert_array_equal(found.numpy(), program.run(torch.from_numpy(NUMBERS))[0].numpy())


SUB_BYTE = {"INT4": ml_dtypes.int4, "UINT4": ml_dtypes.uint4, "INT2": ml_dtypes.int2, "UINT2": ml_dtypes.uint2}


@pytest.mark.parametrize("name", SUB_BYTE)
@pytest.mark.parametrize("source", [np.float32, np.int32, np.uint8])
def test_sub_byte_integers_keep_the_low_bits(name: str, source: type):
    x = np.arange(-9, 20).astype(source)
    program = OneNode("Cast", [x], {"to": getattr(TYPES, name)}, domain="", opset=25).program()
    expected = x.astype(np.int32).astype(SUB_BYTE[name]).astype(np.int32)
    for found in (program.run(torch.from_numpy(x)), run_lowered(program, [torch.from_numpy(x)])):
        np.testing.assert_array_equal(found[0].int().numpy(), expected)


def test_float4_rounds_halves_to_even():
    expected = NUMBERS.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    program = OneNode("Cast", [NUMBERS], {"to": TYPES.FLOAT4E2M1}, domain="", opset=25).program()
    for found in (program.run(torch.from_numpy(NUMBERS)), run_lowered(program, [torch.from_numpy(NUMBERS)])):
        np.testing.assert_array_equal(found[0].numpy(), expected)


@pytest.mark.parametrize("round_mode", ["up", "down", "nearest"])
def test_powers_of_two_round_as_asked(round_mode: str):
    x = np.array([0.3, 0.5, 0.75, 1.0, 1.4, 1.5, 1.6, 3.0, 1000.0, 3e38], dtype=np.float32)
    expected = onnx.numpy_helper.to_float8e8m0(x, True, round_mode).astype(np.float32)
    found = read(x, to=TYPES.FLOAT8E8M0, round_mode=round_mode).float()
    np.testing.assert_array_equal(found.numpy(), expected)


def test_numbers_that_are_no_power_of_two():
    x = np.array([0.0, 1e-40, np.nan, np.inf], dtype=np.float32)
    lowest, highest = 2.0**-127, 2.0**127
    assert read(x, to=TYPES.FLOAT8E8M0).float().tolist()[0] == lowest
    assert read(x, to=TYPES.FLOAT8E8M0).float().tolist()[3] == highest
    assert read(x, to=TYPES.FLOAT8E8M0, saturate=0, round_mode="nearest").float().isnan().all()
    with pytest.raises(ValueError, match="no rounding mode 'odd'"):
        converted(torch.ones(1), "FLOAT8E8M0", round_mode="odd")


def test_bits_of_float4_and_back():
    codes = torch.arange(16)
    numbers = float4_of_codes(codes)
    stored = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(numbers.numpy(), stored)
    assert float4_codes(numbers).tolist() == codes.tolist()


def test_bits_between_types_of_one_width():
    x = np.array([-1, 0, 1, 127], dtype=np.int8)
    assert read(x, "BitCast", 26, to=TYPES.UINT8).tolist() == [255, 0, 1, 127]
    with pytest.raises(CompilerError, match="int8 has 8 bits and int16 16"):
        read(x, "BitCast", 26, to=TYPES.INT16)


def test_the_first_cast_names_its_type():
    assert read(np.array([1.7, -2.7], dtype=np.float32), opset=1, to="INT32").tolist() == [1, -2]


def test_texts_are_refused():
    with pytest.raises(CompilerError, match="no tensors of string"):
        read(np.ones(2, dtype=np.float32), to=TYPES.STRING)


def test_bfloat16_inside_a_lowered_model():
    nodes = [
        onnx.helper.make_node("Cast", ["x0"], ["short"], to=TYPES.BFLOAT16),
        onnx.helper.make_node("Exp", ["short"], ["power"]),
        onnx.helper.make_node("Cast", ["power"], ["y0"], to=TYPES.FLOAT),
    ]
    x = np.linspace(-2, 2, 7, dtype=np.float32)
    node = OneNode("Identity", [x], domain="", opset=21)
    del node.proto.graph.node[:]
    node.proto.graph.node.extend(nodes)
    program = node.program()
    expected = torch.from_numpy(x).bfloat16().exp().float()
    for found in (program.run(torch.from_numpy(x)), run_lowered(program, [torch.from_numpy(x)])):
        torch.testing.assert_close(found[0], expected)
