"""Gathers, scatters, sorts and sizes that values decide: symbolic dims, negative indices, embedding sites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backend_cases import run_lowered
from graph_comparison import TextGraph, assert_same_at
from node_comparison import Array, OneNode

from compiler.errors import CompilerError
from compiler.sites import find_sites

SIZES = [{"B": 3, "N": 8}, {"B": 4, "N": 11}]

GRAPHS = {
    "gather": """(float[B, N, 6] x, int64[B, 2] i) => (float[a, b, c] y, float[d, e, f, g] z, float[h, j] v) {
        some = Constant <value_ints = [1, 0, -3]> ()
        last = Constant <value_int = -1> ()
        y = Gather <axis = 1> (x, some)
        z = Gather <axis = -1> (x, i)
        v = Gather <axis = 1> (x, last)
    }""",
    "gather elements": """(float[B, N] x, int64[B, 3] i) => (float[a, b] y, float[c, d] z) {
        three = Constant <value_int = 3> ()
        below = Sub (i, three)
        y = GatherElements <axis = 1> (x, i)
        z = GatherElements <axis = 1> (x, below)
    }""",
    "gather nd": """(float[B, N, 3] x, int64[B, 2, 2] i, int64[B, 1] j) => (float[a, b] y, float[c, d] z) {
        y = GatherND <batch_dims = 0> (x, i)
        z = GatherND <batch_dims = 1> (x, j)
    }""",
    "scatter elements": """(float[B, N] x, int64[B, 3] i, float[B, 3] u) =>
            (float[a, b] y, float[c, d] z, float[e, f] v) {
        y = ScatterElements <axis = 1, reduction = "add"> (x, i, u)
        z = ScatterElements <axis = 1, reduction = "mul"> (x, i, u)
        v = ScatterElements <axis = 1, reduction = "max"> (x, i, u)
    }""",
    "scatter nd": """(float[4, N] x, int64[B, 1] i, float[B, N] u) =>
            (float[a, b] y, float[c, d] z, float[e, f] v) {
        y = ScatterND <reduction = "add"> (x, i, u)
        z = ScatterND <reduction = "mul"> (x, i, u)
        v = ScatterND <reduction = "min"> (x, i, u)
    }""",
    "one hot": """(int64[B, N] x) => (float[a, b, c] y, int64[d, e, f] z) {
        depth = Constant <value_int = 2> ()
        values = Constant <value_floats = [-1.0, 4.0]> ()
        y = OneHot <axis = 1> (x, depth, values)
        numbers = Constant <value_ints = [0, 1]> ()
        z = OneHot (x, depth, numbers)
    }""",
    "top k": """(int64[B, N] x) => (int64[a, b] y, int64[c, d] i, int64[e, f] z, int64[g, h] j) {
        three = Constant <value_ints = [3]> ()
        y, i = TopK <axis = 1> (x, three)
        batch = Shape <end = 1> (x)
        z, j = TopK <axis = 1, largest = 0> (x, batch)
    }""",
    "reversed sequences": """(float[N, B, 2] x, int64[B] lengths) => (float[a, b, c] y) {
        y = ReverseSequence (x, lengths)
    }""",
    "running sums": """(float[B, N] x) => (float[a, b] y, float[c, d] z) {
        axis = Constant <value_int = 1> ()
        y = CumSum <exclusive = 1> (x, axis)
        z = CumSum <reverse = 1> (x, axis)
    }""",
    "triangles": """(float[B, N, N] x) => (float[a, b, c] y, float[d, e, f] z) {
        y = Trilu (x)
        one = Constant <value_int = -1> ()
        z = Trilu <upper = 0> (x, one)
    }""",
    "places of what is not zero": """(int64[B, N] x) => (int64[a, b] y, int64[c] z, int64[d] v) {
        y = NonZero (x)
        turned = Transpose (y)
        z = GatherND (x, turned)
        count = Shape <start = 1> (y)
        twice = Concat <axis = 0> (count, count)
        one = Constant <value_ints = [1]> ()
        filled = Expand (one, count)
        v = Add (filled, z)
    }""",
    "compress": """(float[B, N] x, bool[N] keep) => (float[a, b] y, float[c] z) {
        y = Compress <axis = 1> (x, keep)
        z = Compress (x, keep)
    }""",
    "unique": """(int64[N] x) => (int64[a] y, int64[b] i, int64[c] j, int64[d] k, int64[e] s) {
        y, i, j, k = Unique <sorted = 0> (x)
        s, p, q, r = Unique (x)
    }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_stay_free(name: str):
    graph = TextGraph(GRAPHS[name])
    used = {dim.dim_param for one in graph.proto.graph.input for dim in one.type.tensor_type.shape.dim}
    assert_same_at(graph, [{name: size for name, size in sizes.items() if name in used} for sizes in SIZES])


def test_rows_of_a_stored_table_are_an_embedding():
    program = TextGraph("""(int64[B, N] x) => (float[a, b, c] y)
        <float[3, 2] table = {1, 2, 3, 4, 5, 6}> {
            y = Gather (table, x)
        }""").program()
    (site,) = [site for site in find_sites(program) if site.kind == "embedding"]
    assert (site.bindings["weight"], site.bindings["width"]) == ("table", 2)
    program.graph_module(torch.tensor([[0, 2, 2]]))[0].sum().backward()
    assert program.weights()["table"].grad.tolist() == [[1, 1], [0, 0], [2, 2]]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.float16, np.int8, np.bool_])
def test_dtypes_without_kernels_of_torch(dtype: type):
    x = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    indices = np.array([[0, -1, 0], [1, 1, -2]])
    gathered = OneNode("GatherElements", [x, indices], domain="", opset=13, stored=[1])
    np.testing.assert_array_equal(gathered.program().run(torch.from_numpy(x))[0].numpy(), gathered.reference()[0])
    places = OneNode("NonZero", [x], domain="", opset=13).program().run(torch.from_numpy(x))[0]
    np.testing.assert_array_equal(places.numpy(), np.nonzero(x))


def test_top_k_takes_the_first_of_equal_values():
    x = np.array([[1, 3, 3, 0, 3]], dtype=np.float32)
    program = OneNode("TopK", [x, np.array([2])], {}, domain="", opset=11, outputs=2, stored=[1]).program()
    for found in (program.run(torch.from_numpy(x)), run_lowered(program, [torch.from_numpy(x)])):
        assert [one.tolist() for one in found] == [[[3, 3]], [[1, 2]]]


def test_first_form_of_top_k_and_the_last_of_equal_values():
    x = np.array([[1, 3, 3, 0, 3]], dtype=np.float32)
    first = OneNode("TopK", [x], {"k": 1}, domain="", opset=1, outputs=2).program()
    assert [one.tolist() for one in first.run(torch.from_numpy(x))] == [[[3]], [[1]]]
    last = OneNode("ArgMax", [x], {"axis": -1, "select_last_index": 1, "keepdims": 0}, domain="", opset=13).program()
    assert last.run(torch.from_numpy(x))[0].tolist() == [4]


def test_sizes_that_values_decide_survive_edits():
    program = TextGraph(GRAPHS["places of what is not zero"]).program()
    before = program.text()
    program.refresh()
    assert program.text() == before
    copied = program.copy().flattened()
    x = torch.tensor([[1, 0], [2, 0], [0, 3]])
    for ours, theirs in zip(copied.run(x), program.run(x), strict=True):
        assert torch.equal(ours, theirs)


def test_unknown_reductions_and_modes_are_refused():
    x, i = np.ones((2, 2), dtype=np.float32), np.zeros((2, 2), dtype=np.int64)
    with pytest.raises(CompilerError, match="reduction 'mean'"):
        OneNode("ScatterElements", [x, i, x], {"reduction": "mean"}, domain="", opset=18).program()
    with pytest.raises(CompilerError, match="mode 'spiral'"):
        OneNode("TensorScatter", [x, x], {"mode": "spiral"}, domain="", opset=24).program()


@pytest.mark.parametrize(
    ("op", "dtype", "others", "attributes"),
    [
        ("Trilu", np.int8, [], {}),
        ("Pad", np.int16, [np.array([1, 0, 0, 1])], {}),
        ("ArgMax", np.int16, [], {"axis": 1}),
        ("ScatterElements", np.float16, [np.array([[0, 1]]), np.ones((1, 2), np.float16)], {"reduction": "add"}),
        ("CumSum", np.float16, [np.array(1)], {}),
        ("Einsum", np.float16, [], {"equation": "ij->ji"}),
    ],
)
def test_dtypes_without_kernels_of_onnx_runtime(op: str, dtype: type, others: list[Array], attributes: dict[str, Any]):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    stored = range(1, 1 + len(others))
    program = OneNode(op, [x, *others], attributes, domain="", opset=21, stored=stored).program()
    (ours,), (theirs,) = program.run(torch.from_numpy(x)), run_lowered(program, [torch.from_numpy(x)])
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
