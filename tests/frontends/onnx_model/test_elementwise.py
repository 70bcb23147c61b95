"""Arithmetic, comparison, bits and activations: symbolic dims, gradients, early versions, dtypes without kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend_cases import run_lowered
from graph_comparison import TextGraph, assert_same_at
from node_comparison import OneNode

from compiler.errors import CompilerError
from compiler.patterns import aten

SIZES = [{"B": 3, "N": 5}, {"B": 2, "N": 9}]

GRAPHS = {
    "arithmetic": """(float[B, N] x, float[N] y) => (float[a, b] z, float[c, d] v) {
        two = Constant <value_float = 2.0> ()
        less = Sub (two, x)
        quotient = Div (less, two)
        inverse = Div (two, y)
        shifted = Mod <fmod = 1> (quotient, two)
        z = Add (shifted, inverse)
        far = Max (x, two, y)
        near = Min (two, far)
        mean = Mean (near, x, two)
        v = Sum (mean, two)
    }""",
    "integers": """(int64[B, N] x) => (int64[a, b] y, int64[c, d] z, bool[e, f] w, int64[g, h] v) {
        three = Constant <value_int = 3> ()
        below = Sub (x, three)
        two = Constant <value_int = 2> ()
        y = Div (below, two)
        z = Mod (below, two)
        w = GreaterOrEqual (below, y)
        low = Constant <value_int = -2> ()
        clipped = Clip (below, low)
        v = Pow (clipped, two)
    }""",
    "powers": """(float[B, N] x, int64[B, N] n) => (float[a, b] y, float[c, d] z, float[e, f] v) {
        two = Constant <value_int = 2> ()
        y = Pow (x, two)
        size = Abs (x)
        z = Pow (size, n)
        base = Constant <value_float = 2.0> ()
        v = Pow (base, x)
    }""",
    "choices": """(float[B, N] x, bool[B, N] m) => (float[a, b] y, bool[c, d] z, bool[e, f] v) {
        minus = Constant <value_float = -1e9> ()
        y = Where (m, minus, x)
        zero = Constant <value_float = 0.0> ()
        positive = Greater (zero, x)
        both = And (positive, m)
        z = Where (m, both, positive)
        v = Xor (both, m)
    }""",
    "activations": """(float[B, N] x) => (float[a, b] y, float[c, d] z) {
        celu = Celu <alpha = 0.7> (x)
        selu = Selu <alpha = 1.5, gamma = 1.2> (celu)
        elu = Elu <alpha = 0.3> (selu)
        y = ThresholdedRelu <alpha = 0.2> (elu)
        sigmoid = HardSigmoid <alpha = 0.3> (x)
        swish = HardSwish (sigmoid)
        soft = Softplus (swish)
        sign = Softsign (soft)
        shrunk = Shrink <bias = 0.1, lambd = 0.2> (sign)
        leaky = LeakyRelu <alpha = 0.2> (x)
        gelu = Gelu <approximate = "tanh"> (leaky)
        mish = Mish (gelu)
        z = Add (shrunk, mish)
    }""",
    "slopes": """(float[B, 3, N] x) => (float[a, b, c] y, float[d, e, f] z) <float[3, 1] s = {0.1, 0.2, 0.3}> {
        y = PRelu (x, s)
        half = Constant <value_float = 0.5> ()
        z = PRelu (y, half)
    }""",
    "bits": """(int32[B, N] x, int32[N] y) => (int32[a, b] z, int32[c, d] v) {
        both = BitwiseAnd (x, y)
        either = BitwiseOr (both, y)
        other = BitwiseXor (either, x)
        z = BitwiseNot (other)
        v = BitwiseAnd (z, x)
    }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_stay_free(name: str):
    assert_same_at(TextGraph(GRAPHS[name]), SIZES)


def test_a_number_stays_one_in_the_graph():
    program = TextGraph("""(float[B, 4] x) => (float[a, b] y) {
        two = Constant <value_float = 2.0> ()
        twice = Mul (x, two)
        squared = Pow (twice, two)
        mask = Less (squared, two)
        minus = Constant <value_float = -1e9> ()
        y = Where (mask, minus, squared)
    }""").program()
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [aten.mul.Tensor, aten.pow.Tensor_Scalar, aten.lt.Scalar, aten.where.ScalarSelf]


def test_gradients_pass():
    program = TextGraph("""(float[B, 3, 2] x) => (float[a, b, c] y)
        <float[3, 1] slope = {0.5, 0.25, 2.0}, float[2] scale = {1.0, 3.0}> {
            leaky = PRelu (x, slope)
            scaled = Mul (leaky, scale)
            low = Constant <value_float = -1.0> ()
            y = Clip (scaled, low)
        }""").program()
    x = torch.tensor([[[-1.0, 2.0], [-4.0, 1.0], [3.0, -5.0]]])
    program.graph_module(x)[0].sum().backward()
    gradients = {name: weight.grad for name, weight in program.weights().items()}
    assert gradients["slope"].flatten().tolist() == [-1.0, -4.0, 0.0]
    assert gradients["scale"].tolist() == [-0.5 - 1.0 + 3.0, 3.0]


EARLY = {
    "Add": (1, {"broadcast": 1, "axis": 1}, (2, 3, 4), (3,)),
    "Mul": (6, {"broadcast": 1, "axis": -3}, (2, 3, 4), (2, 3)),
    "Sub": (6, {"broadcast": 1}, (2, 3, 4), (3, 4)),
    "Div": (1, {"broadcast": 1, "axis": 0}, (2, 3, 4), (2,)),
    "Pow": (1, {"broadcast": 1, "axis": 1}, (2, 3, 4), (3, 4)),
    "Less": (1, {"broadcast": 1, "axis": 1}, (2, 3, 4), (3,)),
}


@pytest.mark.parametrize("op", EARLY)
def test_axes_of_early_broadcasting(op: str):
    opset, attributes, left, right = EARLY[op]
    x, y = (np.random.default_rng(0).random(shape, dtype=np.float32) + 0.5 for shape in (left, right))
    start = attributes.get("axis", len(left) - len(right)) % len(left)
    spread = y.reshape(*y.shape, *[1] * (len(left) - start - len(right)))
    functions = {"Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Less": np.less}
    expected = functions.get(op, np.add)(x, spread)
    (found,) = OneNode(op, [x, y], attributes, domain="", opset=opset).program().run(*map(torch.from_numpy, (x, y)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_early_clip_prelu_and_maximum():
    x = np.array([[[-2.0, 0.5], [3.0, -1.0]]], dtype=np.float32)
    slope = np.array([0.5, 2.0], dtype=np.float32)
    given = torch.from_numpy(x)
    clipped = OneNode("Clip", [x], {"min": -1.0, "max": 1.0}, domain="", opset=6).program().run(given)[0]
    assert clipped.flatten().tolist() == [-1.0, 0.5, 1.0, -1.0]
    leaky = OneNode("PRelu", [x, slope], domain="", opset=1, stored=[1]).program().run(given)[0]
    assert leaky.flatten().tolist() == [-1.0, 0.5, 3.0, -2.0]
    largest = OneNode("Max", [x, -x], domain="", opset=1).program().run(given, -given)[0]
    assert largest.flatten().tolist() == [2.0, 0.5, 3.0, 1.0]


UNSIGNED = np.array([0, 1, 5, 2**63, 2**64 - 1, 2**63 + 7, 10**19], dtype=np.uint64)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Less", "GreaterOrEqual"])
def test_the_whole_range_of_uint64(op: str):
    x, y = (np.ascontiguousarray(one).ravel() for one in np.meshgrid(UNSIGNED, UNSIGNED[1:]))
    node = OneNode(op, [x, y], domain="", opset=21)
    program, tensors = node.program(), [torch.from_numpy(x), torch.from_numpy(y)]
    for found in (program.run(*tensors), run_lowered(program, tensors)):
        np.testing.assert_array_equal(found[0].numpy(), node.reference()[0])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.uint32, np.int64])
def test_integer_dtypes_without_kernels(dtype: type):
    x, y = np.array([1, 7, 100, 3], dtype=dtype), np.array([2, 2, 9, 3], dtype=dtype)
    expected = {"Max": np.maximum(x, y), "Div": x // y, "Sub": y - np.minimum(x, y), "BitwiseNot": ~x}
    for op, numbers in expected.items():
        inputs = [x] if op == "BitwiseNot" else [y, np.minimum(x, y)] if op == "Sub" else [x, y]
        tensors = [torch.from_numpy(one) for one in inputs]
        program = OneNode(op, inputs, domain="", opset=21).program()
        for found in (program.run(*tensors), run_lowered(program, tensors)):
            np.testing.assert_array_equal(found[0].numpy(), numbers)


def test_double_precision_in_the_program_and_kernels_of_single_precision():
    erf = TextGraph("(double[B, N] x) => (double[a, b] y) { y = Erf (x) }")
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    program = erf.program()
    torch.testing.assert_close(program.run(x)[0], torch.erf(x), rtol=0, atol=0)
    (lowered,) = run_lowered(program, [x])
    assert lowered.dtype == torch.float64
    torch.testing.assert_close(lowered, torch.erf(x), rtol=0, atol=1e-6)


def test_a_shift_in_no_direction_is_refused():
    x = np.array([1, 2], dtype=np.uint8)
    with pytest.raises(CompilerError, match="direction is 'UP'"):
        OneNode("BitShift", [x, x], {"direction": "UP"}, domain="", opset=11).program()
