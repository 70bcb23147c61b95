"""If, Loop and Scan: decided while reading, or as cond and while_loop through every form that a Program takes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from compiler.backends.onnx_runtime.translate import onnx_model
from compiler.errors import CompilerError
from compiler.evidence.data import load_dataset
from compiler.passes.canonicalize import Canonicalize
from compiler.regions import nested_graphs
from compiler.rewriting import PassContext
from compiler.target import Target
from tests.frontends.onnx_model.in_runtime import read, require_same

BRANCHES = """m (float[batch,3] x, bool c) => (float[batch,3] y, float[batch,3] z) <float[3] w = {1, 2, 3}> {
    h = Relu(x)
    y, z = If(c) <
        then_branch = t () => (float[batch,3] a, float[batch,3] kept) { a = Mul(h, w) kept = Identity(h) },
        else_branch = e () => (float[batch,3] d, float[batch,3] g) { d = Identity(h) g = Add(x, h) }
    >
}"""
NESTED = """m (float[batch,3] x, bool c) => (float[batch,3] y) <float[3] w = {1, 2, 3}> {
    y = If(c) <
        then_branch = t () => (float[batch,3] a) {
            s = ReduceSum<keepdims = 0>(x)
            zero = Constant<value_float = 0.0>()
            positive = Greater(s, zero)
            a = If(positive) <
                then_branch = tt () => (float[batch,3] p) {
                    v = Constant<value_floats = [3.0, 4.0, 5.0]>() p = Add(x, v)
                },
                else_branch = te () => (float[batch,3] q) { q = Mul(x, w) }
            >
        },
        else_branch = e () => (float[batch,3] d) { d = Neg(x) }
    >
}"""
WHILE = """m (float[batch,4] x, int64 n) => (float[batch,4] y, float[batch,4] total)
        <float[4] w = {1.0, 2.0, 0.5, 1.0}> {
    one = Constant<value_int = 1>()
    c = Cast<to = 9>(one)
    y, total = Loop(n, c, x, x) <body = body (int64 i, bool k, float[batch,4] a, float[batch,4] b)
            => (bool k2, float[batch,4] a2, float[batch,4] b2) {
        a2 = Mul(a, w)
        b2 = Add(b, a2)
        s = ReduceMax<keepdims = 0>(a2)
        limit = Constant<value_float = 50.0>()
        k2 = Less(s, limit)
    }>
}"""


def rows(count: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("text", [BRANCHES, NESTED])
def test_condition_on_data_becomes_cond(text: str) -> None:
    program = read(text)
    assert "cond(" in program.text()
    assert set(program.weights()) >= {"w"}
    feeds = [{"x": rows(n), "c": np.array(c)} for n in (1, 4) for c in (True, False)]
    require_same(text, program, *feeds)


def test_regions_live_through_copies_passes_and_tracing() -> None:
    program = read(NESTED)
    copied = program.copy()
    assert copied.text() == program.text()
    theirs = {id(one) for one in nested_graphs(program.graph_module)}
    assert theirs.isdisjoint(id(one) for one in nested_graphs(copied.graph_module))
    Canonicalize().rewrite(copied, PassContext(Target("cpu"), load_dataset(None, copied)))
    copied.refresh()
    feeds = [{"x": rows(n), "c": np.array(c)} for n in (1, 4) for c in (True, False)]
    require_same(NESTED, copied, *feeds)
    require_same(NESTED, copied.flattened(), *feeds)


def test_branches_train() -> None:
    program = read(BRANCHES)
    x = torch.ones(2, 3)
    y, _ = program.graph_module(x, torch.tensor(True))
    y.sum().backward()
    assert torch.equal(program.weight("w").grad, torch.full((3,), 2.0))


def test_written_branches_hold_their_weights() -> None:
    model = onnx_model(read(BRANCHES))
    branch = next(node for node in model.graph if node.op_type == "If")
    assert [node.op_type for node in branch.attributes["then_branch"].as_graph()] == ["Mul", "Identity"]
    assert not branch.attributes["then_branch"].as_graph().initializers


def test_branches_of_different_sizes_are_merged() -> None:
    text = """m (float[batch,3] x, bool c) => (float[rows,3] y) {
        y = If(c) <then_branch = t () => (float[rows,3] a) { a = Concat<axis = 0>(x, x) },
                   else_branch = e () => (float[rows,3] d) { d = Neg(x) }>
    }"""
    require_same(text, read(text), *({"x": rows(n), "c": np.array(c)} for n in (1, 3) for c in (True, False)))


def test_branches_of_different_ranks_need_a_fixed_condition() -> None:
    text = """m (float[batch,3] x, bool c) => (float[] y) {
        y = If(c) <then_branch = t () => (float[] a) { a = ReduceSum<keepdims = 0>(x) },
                   else_branch = e () => (float[] d) { d = Neg(x) }>
    }"""
    with pytest.raises(CompilerError, match="different kinds of values") as refusal:
        read(text)
    assert "--input c=" in refusal.value.hint
    fixed = read(text, values={"x": torch.ones(2, 3), "c": torch.tensor(True)})
    assert [spec.name for spec in fixed.inputs] == ["x"]
    assert any("'c'" in note for note in fixed.notes)


def test_condition_on_a_symbolic_size_is_decided_and_noted() -> None:
    text = """m (float[batch,length,4] x) => (float[] y) {
        sizes = Shape(x)
        one = Constant<value_int = 1>()
        length = Gather(sizes, one)
        single = Equal(length, one)
        y = If(single) <
            then_branch = t () => (float[] a) { axes = Constant<value_ints = [1]>() a = Squeeze(x, axes) },
            else_branch = e () => (float[] b) { b = Identity(x) }
        >
    }"""
    program = read(text)
    assert program.dimensions["length"].minimum == 2
    assert any("'length' is at least 2" in note for note in program.notes)
    static = read(text, ["x=float32[batch,1,4]"])
    assert [str(dim) for dim in static.outputs[0].shape] == ["batch", "4"]


def test_branch_that_fails_at_these_sizes_gives_nan() -> None:
    text = """m (float[batch,3] x, float[5] v, bool c) => (float[batch,3] y) {
        y = If(c) <then_branch = t () => (float[batch,3] a) { a = Neg(x) },
                   else_branch = e () => (float[batch,3] d) { d = Add(x, v) }>
    }"""
    program = read(text)
    assert any("else branch fails" in note for note in program.notes)
    x, v = torch.from_numpy(rows(2)), torch.ones(5)
    assert torch.equal(program.run(x, v, torch.tensor(True))[0], -x)
    assert program.run(x, v, torch.tensor(False))[0].isnan().all()


def test_loop_with_run_time_end_becomes_while_loop() -> None:
    program = read(WHILE)
    assert "while_loop(" in program.text()
    feeds = [{"x": rows(n, 4), "n": np.array(steps)} for n in (1, 3) for steps in (0, 2, 20)]
    require_same(WHILE, program, *feeds)
    canonical = program.copy()
    Canonicalize().rewrite(canonical, PassContext(Target("cpu"), load_dataset(None, canonical)))
    require_same(WHILE, canonical.flattened(), *feeds)


def test_loop_of_known_length_is_written_out() -> None:
    text = """m (float[batch,4] x) => (float[batch,4] y, float[steps,batch,4] all) {
        n = Constant<value_int = 3>()
        y, all = Loop(n, , x) <body = b (int64 i, bool k, float[batch,4] a)
                => (bool k2, float[batch,4] a2, float[batch,4] seen) {
            k2 = Identity(k) f = Cast<to = 1>(i) a2 = Add(a, f) seen = Neg(a2)
        }>
    }"""
    program = read(text)
    assert "while_loop" not in program.text()
    require_same(text, program, {"x": rows(1, 4)}, {"x": rows(3, 4)})


def test_loop_over_a_dynamic_dim_keeps_it() -> None:
    text = """m (float[batch,4] x) => (float[4] y) <float[4] zeros = {0, 0, 0, 0}> {
        first = Constant<value_int = 0>()
        sizes = Shape(x)
        n = Gather(sizes, first)
        y = Loop(n, , zeros) <body = b (int64 i, bool k, float[4] a) => (bool k2, float[4] a2) {
            k2 = Identity(k) row = Gather(x, i) a2 = Add(a, row)
        }>
    }"""
    program = read(text)
    assert "batch" in program.dimensions
    require_same(text, program, {"x": rows(1, 4)}, {"x": rows(5, 4)})


def test_loop_that_collects_needs_its_trip_count() -> None:
    text = """m (float[4] x, int64 n) => (float[4] y, float[steps,4] all) {
        y, all = Loop(n, , x) <body = b (int64 i, bool k, float[4] a) => (bool k2, float[4] a2, float[4] seen) {
            k2 = Identity(k) a2 = Add(a, a) seen = Neg(a2)
        }>
    }"""
    with pytest.raises(CompilerError, match="collects a value from every step"):
        read(text)
    program = read(text, values={"x": torch.ones(4), "n": torch.tensor(2)})
    assert [tuple(one.shape) for one in program.run(torch.ones(4))] == [(4,), (2, 4)]


@pytest.mark.parametrize("trip_count", ["n", ""])
def test_endless_loops_are_refused_quickly(trip_count: str) -> None:
    text = f"""m (float[4] x) => (float[4] y) {{
        n = Constant<value_int = 1000000000>()
        one = Constant<value_int = 1>()
        c = Cast<to = 9>(one)
        y = Loop({trip_count}, c, x) <body = b (int64 i, bool k, float[4] a) => (bool k2, float[4] a2) {{
            k2 = Identity(k) a2 = Add(a, a)
        }}>
    }}"""
    started = time.monotonic()
    with pytest.raises(CompilerError, match="more than 10,000 operators in loops"):
        read(text)
    assert time.monotonic() - started < 5


def test_scan_in_both_directions() -> None:
    text = """m (float[5,4] x, float[4,5] v) => (float[4] s, float[4,5] ys) <float[4] zeros = {0, 0, 0, 0}> {
        s, ys = Scan <num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [0, 1],
                scan_output_axes = [1], scan_output_directions = [1],
                body = b (float[4] a, float[4] xi, float[4] vi) => (float[4] a2, float[4] y) {
            m = Mul(xi, vi) a2 = Add(a, m) y = Tanh(a2)
        }> (zeros, x, v)
    }"""
    require_same(text, read(text), {"x": rows(5, 4), "v": rows(4, 5)})
