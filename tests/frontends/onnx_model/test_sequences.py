"""Sequences and optionals: lists while reading, several tensors at the edges of the Program."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.errors import CompilerError
from tests.frontends.onnx_model.in_runtime import read, require_same

JOIN = (
    "m (seq(float[2]) s, float[2] x) => (float[n] y) { t = SequenceInsert(s, x) y = ConcatFromSequence<axis = 0>(t) }"
)


def test_sequence_input_becomes_several() -> None:
    program = read(JOIN, ["s_0=float32[2]", "s_1=float32[2]"])
    assert [spec.name for spec in program.inputs] == ["s_0", "s_1", "x"]
    found = program.run(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0]))
    assert found[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_examples_say_how_long_a_sequence_is() -> None:
    program = read(JOIN, values={"s": [torch.ones(2)], "x": torch.ones(2)})
    assert [spec.name for spec in program.inputs] == ["s_0", "x"]


def test_sequence_of_unknown_length_is_refused() -> None:
    with pytest.raises(CompilerError, match="'s' is a sequence") as refusal:
        read(JOIN)
    assert "--input s_0=" in refusal.value.hint


def test_sequence_output_becomes_several() -> None:
    text = "m (float[6] x) => (seq(float[2]) y) { two = Constant<value_int = 2>() y = SplitToSequence(x, two) }"
    program = read(text)
    assert [str(spec) for spec in program.outputs] == ["y_0: float32[2]", "y_1: float32[2]", "y_2: float32[2]"]
    assert [one.tolist() for one in program.run(torch.arange(6.0))] == [[0, 1], [2, 3], [4, 5]]


def test_sequences_inside_a_model() -> None:
    text = """m (float[batch,3] x) => (float[batch,k] y, int64 n) {
        one = Constant<value_int = 1>()
        last = Constant<value_int = -1>()
        a = Relu(x)
        b = Neg(x)
        s = SequenceConstruct(a, b, x)
        t = SequenceErase(s, one)
        u = SequenceInsert(t, b, last)
        first = SequenceAt(u, one)
        n = SequenceLength(u)
        all = ConcatFromSequence<axis = 1>(u)
        y = Concat<axis = 1>(all, first)
    }"""
    program = read(text)
    feeds = [{"x": np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)} for n in (1, 4)]
    require_same(text, program, *feeds)


def test_position_outside_a_sequence_is_refused() -> None:
    text = """m (float[2] x) => (float[2] y) {
        i = Constant<value_int = 3>() s = SequenceConstruct(x, x) y = SequenceAt(s, i)
    }"""
    with pytest.raises(CompilerError, match="position 3 in a sequence of 2"):
        read(text)


@pytest.mark.parametrize("given", [None, torch.tensor([1.0, -2.0])])
def test_optional_input_is_there_or_not(given: torch.Tensor | None) -> None:
    text = """m (optional(float[2]) o, float[2] x) => (float[2] y) {
        there = OptionalHasElement(o)
        y = If(there) <then_branch = t () => (float[2] a) { v = OptionalGetElement(o) a = Add(v, x) },
                       else_branch = e () => (float[2] b) { b = Neg(x) }>
    }"""
    program = read(text, values={"o": given, "x": torch.ones(2)})
    inputs = [] if given is None else [given]
    assert [spec.name for spec in program.inputs] == (["x"] if given is None else ["o", "x"])
    expected = [-1, -1] if given is None else [2, -1]
    assert program.run(*inputs, torch.ones(2))[0].tolist() == expected


def test_sequence_map_runs_its_body_on_every_item() -> None:
    text = """m (float[6] x) => (float[6] y) {
        two = Constant<value_int = 2>()
        s = SplitToSequence(x, two)
        t = SequenceMap <body = b (float[2] item) => (float[2] out) { out = Neg(item) }> (s)
        y = ConcatFromSequence<axis = 0>(t)
    }"""
    require_same(text, read(text), {"x": np.arange(6, dtype=np.float32)})
