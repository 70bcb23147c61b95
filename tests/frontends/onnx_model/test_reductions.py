"""Reductions, softmax and products over named dims: older forms, symbolic dims, empty sets, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_comparison import TextGraph, assert_same_at
from node_comparison import OneNode

SIZES = [{"B": 3, "N": 8}, {"B": 1, "N": 5}]
REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


def every_reduction(form: str) -> str:
    """A graph that applies `form` with every reduction to the absolute values of x: logarithms exist."""
    outputs = ", ".join(f"float[{name}_a, {name}_b, {name}_c] {name}" for name in REDUCTIONS)
    lines = "\n".join(form.format(name=name) for name in REDUCTIONS)
    constants = "axes = Constant <value_ints = [-1, 0]> ()"
    return f"(float[B, N, 4] x) => ({outputs}) {{ positive = Abs (x)\n{constants}\n{lines} }}"


@pytest.mark.parametrize(
    ("opset", "form"),
    [
        (12, "{name} = Reduce{name} <axes = [1], keepdims = 0> (positive)"),
        (12, "{name} = Reduce{name} (positive)"),
        (18, "{name} = Reduce{name} (positive, axes)"),
        (18, "{name} = Reduce{name} <noop_with_empty_axes = 1> (positive)"),
    ],
)
def test_axes_are_an_attribute_and_later_an_input(opset: int, form: str):
    assert_same_at(TextGraph(every_reduction(form), opset), SIZES, rtol=1e-4)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_other_dtypes(name: str, dtype: type):
    x = np.random.default_rng(0).integers(1, 5, (3, 4, 2)).astype(dtype)
    node = OneNode(f"Reduce{name}", [x, np.array([1])], domain="", opset=18, stored=[1])
    found = node.program().run(torch.from_numpy(x))[0]
    exact = {
        "L1": np.abs(x).sum(1, keepdims=True),
        "L2": np.sqrt((x.astype(float) ** 2).sum(1, keepdims=True)),
        "LogSum": np.log(x.sum(1, keepdims=True)),
        "LogSumExp": np.log(np.exp(x.astype(float)).sum(1, keepdims=True)),
        "Mean": x.mean(1, keepdims=True),
        "Prod": x.prod(1, keepdims=True),
        "SumSquare": (x * x).sum(1, keepdims=True),
        "Max": x.max(1, keepdims=True),
        "Min": x.min(1, keepdims=True),
        "Sum": x.sum(1, keepdims=True),
    }[name].astype(dtype)
    assert found.numpy().dtype == exact.dtype
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-9)


def test_reductions_of_nothing():
    x = np.zeros((2, 0, 3), dtype=np.float32)
    expected = {"Sum": 0, "Prod": 1, "Max": -np.inf, "Min": np.inf, "L1": 0, "L2": 0, "LogSumExp": -np.inf}
    for name, number in expected.items():
        program = OneNode(f"Reduce{name}", [x, np.array([1])], domain="", opset=20, stored=[1]).program()
        assert program.run(torch.from_numpy(x))[0].tolist() == [[[number] * 3]] * 2


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_before_and_since_opset_13(name: str):
    text = f"""(float[B, N, 4] x) => (float[a, b, c] y, float[d, e, f] z, float[g, h, i] v) {{
        y = {name} (x)
        z = {name} <axis = 0> (x)
        v = {name} <axis = 2> (x)
    }}"""
    assert_same_at(TextGraph(text, 13), SIZES)
    older = TextGraph(text, 11).program()
    x = np.random.default_rng(0).standard_normal((3, 8, 4)).astype(np.float32)
    for axis, ours in zip((1, 0, 2), older.run(torch.from_numpy(x)), strict=True):
        matrix = torch.from_numpy(x.reshape(int(np.prod(x.shape[:axis])), -1))
        expected = {
            "Softmax": matrix.softmax(1),
            "LogSoftmax": matrix.log_softmax(1),
            "Hardmax": torch.nn.functional.one_hot(matrix.argmax(1), matrix.shape[1]).float(),
        }[name]
        torch.testing.assert_close(ours, expected.reshape(x.shape))


def test_einsum_det_and_running_products():
    text = """(float[B, N, 4] x, float[B, 4, 4] m) => (float[a, b, c] y, float[d] z, float[e, f, g] v, float[h, i] u) {
        y = Einsum <equation = "bnk, b k j -> bjn"> (x, m)
        z = Det (m)
        axis = Constant <value_int = 1> ()
        v = CumProd <exclusive = 1> (x, axis)
        u = Einsum <equation = "...ii->...i"> (m)
    }"""
    assert_same_at(TextGraph(text, 26), SIZES, rtol=1e-4, atol=1e-5)


def test_losses_train_through_reductions():
    program = TextGraph("""(float[B, 3] x) => (float y)
        <float[3, 2] w = {1, -2, 3, 4, -5, 6}> {
            axes = Constant <value_ints = [1]> ()
            product = Einsum <equation = "bi,ij->bj"> (x, w)
            shares = LogSoftmax (product)
            norm = ReduceL2 (shares, axes)
            y = ReduceSum <keepdims = 0> (norm)
        }""").program()
    program.graph_module(torch.randn(4, 3))[0].backward()
    gradient = program.weights()["w"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
