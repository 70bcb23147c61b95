"""Shape arithmetic: symbolic sizes go through what exporters write, and end as sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_comparison import TextGraph, assert_same_at
from node_comparison import OneNode

SIZES = [{"B": 3, "N": 8}, {"B": 5, "N": 11}]

SHAPES = {
    "a floor of a scaled size": """
        size = Shape <start = 1> (x)
        float = Cast <to = 1> (size)
        factor = Constant <value_floats = [1.5]> ()
        scaled = Mul (float, factor)
        down = Floor (scaled)
        length = Cast <to = 7> (down)""",
    "a ceiling of a half": """
        size = Shape <start = 1> (x)
        float = Cast <to = 1> (size)
        two = Constant <value_floats = [2.0]> ()
        half = Div (float, two)
        up = Ceil (half)
        length = Cast <to = 7> (up)""",
    "a remainder that pads": """
        size = Shape <start = 1> (x)
        four = Constant <value_ints = [4]> ()
        rest = Mod (size, four)
        length = Sub (four, rest)""",
    "extremes": """
        size = Shape <start = 1> (x)
        nine = Constant <value_ints = [9]> ()
        twenty = Constant <value_ints = [20]> ()
        least = Max (size, nine)
        length = Min (least, twenty)""",
    "a product of all sizes": """
        sizes = Shape (x)
        length = ReduceProd <keepdims = 1> (sizes)""",
    "a sum, a part and a power": """
        sizes = Shape (x)
        first, second = Split <axis = 0, num_outputs = 2> (sizes)
        two = Constant <value_int = 2> ()
        square = Pow (first, two)
        both = Concat <axis = 0> (square, second)
        axes = Constant <value_ints = [0]> ()
        length = ReduceSum <keepdims = 1> (both, axes)""",
    "the sizes of an expansion": """
        size = Shape <start = 1> (x)
        minus = Constant <value_ints = [-1]> ()
        same = Equal (size, minus)
        one = Constant <value_ints = [1]> ()
        length = Where (same, one, size)""",
    "running sums of tiles": """
        size = Shape <start = 1> (x)
        three = Constant <value_ints = [3]> ()
        tiled = Tile (size, three)
        zero = Constant <value_int = 0> ()
        sums = CumSum (tiled, zero)
        last = Constant <value_ints = [2]> ()
        length = Gather (sums, last)""",
}


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_stay_free(name: str):
    text = f"(float[B, N] x) => (float[a] y, int64[c] z) {{{SHAPES[name]}\n    y = ConstantOfShape (length)"
    graph = TextGraph(text + "\n    z = Identity (length)\n}")
    for sizes in SIZES:
        inputs = graph.inputs(sizes)
        expected = graph.reference(inputs)
        assert expected[0].shape == tuple(expected[1])
    assert_same_at(graph, SIZES)


CONSTANTS = {
    "Neg": ([[3, -4]], {}),
    "Abs": ([[3, -4]], {}),
    "Sqrt": ([4.0], {}),
    "Reciprocal": ([0.0], {}),
    "Round": ([2.5], {}),
    "Div": ([[-7, 7, 8], [2, -2, 3]], {}),
    "Mod": ([[-7, 7, 8], [2, -2, 3]], {}),
    "Pow": ([[2, 3], [3, 2]], {}),
    "Clip": ([[-7, 7], -2, 3], {}),
    "Sum": ([[1, 2], [3, 4], [5, 6]], {}),
    "Expand": ([[1, 2], [3, 1]], {}),
    "Flatten": ([[[1, 2], [3, 4]]], {"axis": 0}),
    "Range": ([5, 0, -2], {}),
    "ReduceMax": ([[[1, 9], [3, 4]], [0]], {"keepdims": 0}),
    "ReduceMin": ([[[1, 9], [3, 4]]], {"keepdims": 0}),
}


@pytest.mark.parametrize("op", CONSTANTS)
def test_constants_are_computed_while_reading(op: str):
    inputs, attributes = CONSTANTS[op]
    arrays = [np.array(one, dtype=np.float32 if isinstance(np.ravel(one)[0], float) else np.int64) for one in inputs]
    node = OneNode(op, arrays, attributes, domain="", opset=18, stored=range(len(arrays)))
    program = node.program()
    with np.errstate(all="ignore"):
        expected = onnx.reference.ReferenceEvaluator(node.proto).run(None, {})
    np.testing.assert_array_equal(program.run()[0].numpy(), expected[0])
    assert not [one for one in program.graph.nodes if one.op == "call_function" and op.lower() in str(one.target)]


def test_arithmetic_rounds_to_single_precision():
    """0.7 in float32 is below 0.7: ten of them are 7 where the product is rounded too, and 6.99999988 where not."""
    graph = TextGraph(
        """(float[B] x) => (float[a] y) {
        ten = Constant <value_floats = [10.0]> ()
        factor = Constant <value_floats = [0.7]> ()
        product = Mul (ten, factor)
        whole = Floor (product)
        length = Cast <to = 7> (whole)
        zeros = ConstantOfShape (length)
        first = Slice (x, one, two)
        y = Add (zeros, first)
    }""".replace(
            "first = Slice (x, one, two)",
            """zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        first = Slice (x, zero, one)""",
        )
    )
    assert_same_at(graph, [{"B": 3}, {"B": 4}])
