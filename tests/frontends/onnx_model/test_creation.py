"""Tensors made from sizes, and random numbers: sizes that stay free, dtypes, training mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from backend_cases import run_lowered
from graph_comparison import TextGraph, assert_same_at
from node_comparison import OneNode

from compiler.errors import CompilerError
from compiler.program import Program

SIZES = [{"B": 3, "N": 5}, {"B": 2, "N": 9}]
TYPES = onnx.TensorProto

GRAPHS = {
    "filled": """(float[B, N] x) => (int32[a, b] y, float[c, d] z) {
        sizes = Shape (x)
        y = ConstantOfShape <value = int32[1] {7}> (sizes)
        last = Shape <start = 1> (x)
        zeros = ConstantOfShape (last)
        z = Add (x, zeros)
    }""",
    "counted": """(float[B, N] x) => (int64[a] y, float[b] z) {
        size = Shape <start = 1, end = 2> (x)
        zero = Constant <value_int = 0> ()
        limit = Squeeze (size)
        one = Constant <value_int = 1> ()
        y = Range (zero, limit, one)
        z = Cast <to = 1> (y)
    }""",
    "diagonals": """(float[B, N] x) => (float[a, b] y, int64[c, d] z) {
        y = EyeLike <k = 1> (x)
        z = EyeLike <k = -1, dtype = 7> (x)
    }""",
    "dropout that drops nothing": """(float[B, N] x) => (float[a, b] y, bool[c, d] m) {
        half = Constant <value_float = 0.5> ()
        y, m = Dropout (x, half)
    }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_stay_free(name: str):
    assert_same_at(TextGraph(GRAPHS[name]), SIZES)


@pytest.mark.parametrize("bounds", [(5, 1, -2), (0, 0, 1), (1.0, 2.0, 0.3)])
def test_ranges_of_known_numbers(bounds: tuple[float, ...]):
    numbers = [np.array(one) for one in bounds]
    node = OneNode("Range", numbers, domain="", opset=11, stored=[0, 1, 2])
    np.testing.assert_allclose(node.program().run()[0].numpy(), node.reference()[0])


def test_diagonals_of_vectors_are_refused():
    with pytest.raises(CompilerError, match="its input has 1 dims"):
        OneNode("EyeLike", [np.ones(3, dtype=np.float32)], domain="", opset=9).program()


def drawn(op: str, attributes: Mapping[str, Any], *inputs: np.ndarray, opset: int = 15) -> tuple[Program, list[Any]]:
    """A node that draws, and what it gives eagerly and lowered."""
    node = OneNode(op, inputs, attributes, domain="", opset=opset)
    program, tensors = node.program(), [torch.from_numpy(one) for one in inputs]
    return program, [program.run(*tensors)[0], run_lowered(program, tensors)[0]]


def test_normal_and_uniform_numbers():
    x = np.zeros((40, 50), dtype=np.float32)
    for op, inputs, shape in (("", [], {"shape": [40, 50]}), ("Like", [x], {})):
        normal, found = drawn(f"RandomNormal{op}", {"mean": 3.0, "scale": 0.5, **shape}, *inputs)
        for one in found:
            assert (one.shape, one.dtype) == ((40, 50), torch.float32)
            assert abs(float(one.mean()) - 3.0) < 0.1
            assert abs(float(one.std()) - 0.5) < 0.1
        _, found = drawn(f"RandomUniform{op}", {"low": -1.0, "high": 3.0, "dtype": TYPES.DOUBLE, **shape}, *inputs)
        for one in found:
            assert one.dtype == torch.float64
            assert -1.0 <= float(one.min()) < -0.8 < 2.8 < float(one.max()) < 3.0
    assert not torch.equal(normal.run(torch.from_numpy(x))[0], normal.run(torch.from_numpy(x))[0])


def test_bernoulli_and_multinomial():
    chance = np.full((40, 50), 0.3, dtype=np.float32)
    for one in drawn("Bernoulli", {"dtype": TYPES.INT64}, chance)[1]:
        assert one.dtype == torch.int64
        assert abs(float(one.float().mean()) - 0.3) < 0.06
    logits = np.log(np.array([[0.5, 0.0, 1.5], [0.0, 1.0, 0.0]], dtype=np.float32) + 1e-9)
    for one in drawn("Multinomial", {"sample_size": 400, "dtype": TYPES.INT32}, logits)[1]:
        assert (one.shape, one.dtype) == ((2, 400), torch.int32)
        assert one[1].unique().tolist() == [1]
        assert abs(float((one[0] == 2).float().mean()) - 0.75) < 0.1


def test_dropout_in_training_mode():
    x = np.ones((40, 50), dtype=np.float32)
    node = OneNode("Dropout", [x, np.array(0.25, np.float32), np.array(True)], domain="", outputs=2, stored=[1, 2])
    program = node.program()
    for kept, mask in (program.run(torch.from_numpy(x)), run_lowered(program, [torch.from_numpy(x)])):
        assert mask.dtype == torch.bool
        assert abs(float(mask.float().mean()) - 0.75) < 0.06
        torch.testing.assert_close(kept, mask / 0.75)
    everything = OneNode("Dropout", [x, np.array(1.0, np.float32), np.array(True)], domain="", stored=[1, 2]).program()
    assert not everything.run(torch.from_numpy(x))[0].any()


@pytest.mark.parametrize("opset", [1, 6, 7, 10])
def test_early_dropout_drops_nothing(opset: int):
    x = np.ones((2, 3), dtype=np.float32)
    program = OneNode("Dropout", [x], {"ratio": 0.9}, domain="", opset=opset, outputs=2).program()
    kept, mask = program.run(torch.from_numpy(x))
    assert torch.equal(kept, torch.from_numpy(x))
    assert mask.all()
    assert mask.dtype == (torch.bool if opset == 10 else torch.float32)
