"""Shapes, joins, slices and padding: dims stay symbolic, and the older forms of the operators are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_comparison import TextGraph, assert_same_at
from node_comparison import OneNode

from compiler.errors import CompilerError

SIZES = [{"B": 3, "N": 8}, {"B": 1, "N": 11}]

GRAPHS = {
    "reshape to sizes that shape arithmetic gives": """(float[B, N, 6] x) => (float[a, b, c, d] y) {
        shape = Shape (x)
        first = Constant <value_int = 0> ()
        second = Constant <value_int = 1> ()
        axis = Constant <value_ints = [0]> ()
        batch = Gather (shape, first)
        tokens = Gather (shape, second)
        batch_1 = Unsqueeze (batch, axis)
        tokens_1 = Unsqueeze (tokens, axis)
        heads = Constant <value_ints = [2]> ()
        rest = Constant <value_ints = [-1]> ()
        target = Concat <axis = 0> (batch_1, tokens_1, heads, rest)
        y = Reshape (x, target)
    }""",
    "reshape that copies sizes": """(float[B, N, 6] x) => (float[a, b, c] y) {
        target = Constant <value_ints = [0, -1, 3]> ()
        y = Reshape (x, target)
    }""",
    "flatten": """(float[B, N, 6] x) => (float[a, b] y, float[c, d] z, float[e, f] v) {
        y = Flatten <axis = 0> (x)
        z = Flatten (x)
        v = Flatten <axis = -1> (x)
    }""",
    "expand to the shape of another tensor": """(float[B, 1] x, float[B, N] like) => (float[a, b] y) {
        shape = Shape (like)
        y = Expand (x, shape)
    }""",
    "tile by a size": """(float[2, N] x, float[B, 1] like) => (float[a, b] y) {
        shape = Shape (like)
        y = Tile (x, shape)
    }""",
    "squeeze and unsqueeze": """(float[B, 1, N, 1] x) => (float[c, d, e] z, float[f, g, h, i, j, k] v) {
        middle = Constant <value_ints = [1]> ()
        z = Squeeze (x, middle)
        outer = Constant <value_ints = [-1, 0]> ()
        v = Unsqueeze (x, outer)
    }""",
    "slices": """(float[B, N] x) => (float[a, b] y, float[c, d] z, float[e, f] v, float[g, h] u) {
        one = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [-1]> ()
        huge = Constant <value_ints = [9223372036854775807]> ()
        lowest = Constant <value_ints = [-9223372036854775807]> ()
        three = Constant <value_ints = [3]> ()
        back = Constant <value_ints = [-2]> ()
        y = Slice (x, one, last, one)
        z = Slice (x, last, lowest, one, last)
        v = Slice (x, huge, three, one, back)
        u = Slice (x, three, huge, one, three)
    }""",
    "slice to a size": """(float[2, N, 4] x) => (float[a, b, c] y) {
        shape = Shape <start = 1, end = 2> (x)
        two = Constant <value_ints = [2]> ()
        half = Div (shape, two)
        one = Constant <value_ints = [1]> ()
        y = Slice (x, one, half, one)
    }""",
    "split into pieces of which the last is smaller": """(float[N, 2] x) =>
            (float[a, b] y, float[c, d] z, float[e, f] v) {
        y, z, v = Split <axis = 0, num_outputs = 3> (x)
    }""",
    "concat": """(float[B, N] x, float[B, 2] y) => (float[a, b] z) {
        z = Concat <axis = -1> (x, y, x)
    }""",
    "pad": """(float[B, N, 3, 4] x) =>
            (float[a, b, c, d] y, float[e, f, g, h] z, float[i, j, k, l] v, float[m, n, o, p] u) {
        pads = Constant <value_ints = [1, 2, 1, 2]> ()
        axes = Constant <value_ints = [1, 3]> ()
        fill = Constant <value_float = 2.5> ()
        y = Pad (x, pads, fill, axes)
        z = Pad <mode = "reflect"> (x, pads, , axes)
        v = Pad <mode = "edge"> (x, pads, , axes)
        u = Pad <mode = "wrap"> (x, pads, , axes)
    }""",
    "depth to space and back": """(float[B, 8, N, 2] x) =>
            (float[a, b, c, d] y, float[e, f, g, h] z, float[i, j, k, l] v) {
        y = DepthToSpace <blocksize = 2, mode = "DCR"> (x)
        z = DepthToSpace <blocksize = 2, mode = "CRD"> (x)
        v = SpaceToDepth <blocksize = 2> (y)
    }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_stay_free(name: str):
    graph = TextGraph(GRAPHS[name])
    used = {dim.dim_param for one in graph.proto.graph.input for dim in one.type.tensor_type.shape.dim}
    assert_same_at(graph, [{name: size for name, size in sizes.items() if name in used} for sizes in SIZES])


OLDER_FORMS = {
    "Reshape": (1, {"shape": [3, -1]}, lambda x: x.reshape(3, -1)),
    "Squeeze": (11, {"axes": [-3]}, lambda x: x.squeeze(0)),
    "Unsqueeze": (11, {"axes": [0, -1]}, lambda x: x[None, ..., None]),
    "Slice": (9, {"starts": [1, -2], "ends": [100, -1], "axes": [2, 1]}, lambda x: x[:, -2:-1, 1:]),
    "Pad": (
        2,
        {"pads": [0, 0, 1, 0, -1, 0], "value": 3.0},
        lambda x: np.pad(x[:, :1], [(0, 0), (0, 0), (1, 0)], constant_values=3),
    ),
    "Concat": (3, {}, lambda x: x),
    "Split": (2, {"axis": 2, "split": [3]}, lambda x: x),
    "Transpose": (1, {}, lambda x: x.transpose()),
}  # fmt: skip


@pytest.mark.parametrize("op", OLDER_FORMS)
def test_attributes_of_older_versions(op: str):
    version, attributes, expected = OLDER_FORMS[op]
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    program = OneNode(op, [x], attributes, domain="", opset=version).program()
    np.testing.assert_array_equal(program.run(torch.from_numpy(x))[0].numpy(), expected(x))


def test_first_forms_of_pad_and_tile():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    padded = OneNode("Pad", [x], {"paddings": [0, 1, 0, 0], "mode": "edge"}, domain="", opset=1).program()
    np.testing.assert_array_equal(padded.run(torch.from_numpy(x))[0].numpy(), np.pad(x, [(0, 0), (1, 0)], "edge"))
    inputs = [x, np.array(2), np.array(1)]
    tiled = OneNode("Tile", inputs, domain="", opset=1, stored=[1, 2]).program()
    np.testing.assert_array_equal(tiled.run(torch.from_numpy(x))[0].numpy(), np.tile(x, (1, 2)))


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_padding_of_any_rank_and_width(mode: str, rank: int):
    x = np.random.default_rng(0).integers(0, 9, [2, 3, 2, 4, 3][:rank]).astype(np.int64)
    widths = [5] + [0] * (rank - 1) + [7] + [0] * (rank - 2) + [1] * (rank > 1)
    pads = np.array(widths, dtype=np.int64)
    program = OneNode("Pad", [x, pads], {"mode": mode}, domain="", opset=19, stored=[1]).program()
    expected = np.pad(x, list(zip(widths[:rank], widths[rank:], strict=True)), mode)
    np.testing.assert_array_equal(program.run(torch.from_numpy(x))[0].numpy(), expected)


def test_numbers_train_through_moves():
    graph = TextGraph("""(float[B, 4] x) => (float[a] y)
        <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
            turned = Transpose (w)
            pads = Constant <value_ints = [0, 1, 0, 1]> ()
            padded = Pad <mode = "reflect"> (turned, pads)
            starts = Constant <value_ints = [-2]> ()
            ends = Constant <value_ints = [-9]> ()
            axes = Constant <value_ints = [1]> ()
            steps = Constant <value_ints = [-1]> ()
            cut = Slice (padded, starts, ends, axes, steps)
            shape = Constant <value_ints = [-1]> ()
            y = Reshape (cut, shape)
        }""")
    program = graph.program()
    program.graph_module(torch.ones(2, 4))[0].sum().backward()
    gradient = program.weights()["w"].grad
    assert gradient is not None
    assert gradient.sum() == 10


def test_unknown_modes_are_refused():
    x = np.ones((1, 4, 2, 2), dtype=np.float32)
    for op, attributes in {
        "Pad": {"mode": "sideways", "pads": [1] * 8},
        "DepthToSpace": {"mode": "RCD", "blocksize": 2},
    }.items():
        with pytest.raises(CompilerError, match="mode"):
            OneNode(op, [x], attributes, domain="", opset=2).program()
