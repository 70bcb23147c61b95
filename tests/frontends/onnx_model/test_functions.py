"""Functions are inlined; and graphs of unusual edges: no inputs, outputs that are inputs, constants or named twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compiler.compile_model import compile_model
from compiler.errors import CompilerError
from compiler.recipe import Recipe, parse_passes
from compiler.runtime.verify import verify
from tests.frontends.onnx_model.in_runtime import parsed, read, require_same

FUNCTIONS = '<ir_version: 9, opset_import: ["": 17, "local": 1]>\n'
ROWS = [{"x": np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)} for n in (1, 4)]


def test_functions_that_call_functions_with_attributes() -> None:
    text = f"""{FUNCTIONS} m (float[batch,3] x) => (float[batch,3] y) {{
        a = local.outer<k = 0.5>(x)
        y = local.inner(a)
    }}
    <domain: "local", opset_import: ["": 17, "local": 1]>
    outer <k, q: float = 2.0> (a) => (r) {{ t = local.inner<alpha = @k>(a) u = LeakyRelu<alpha = @q>(t) r = Add(u, a) }}
    <domain: "local", opset_import: ["": 17]>
    inner <alpha: float = 0.1> (a) => (r) {{ t = Neg(a) r = LeakyRelu<alpha = @alpha>(t) }}"""
    require_same(text, read(text), *ROWS)


def test_recursive_function_is_refused() -> None:
    text = f"""{FUNCTIONS} m (float[batch,3] x) => (float[batch,3] y) {{ y = local.f(x) }}
    <domain: "local", opset_import: ["": 17, "local": 1]> f (a) => (r) {{ r = local.f(a) }}"""
    with pytest.raises(CompilerError, match="cannot be inlined") as refusal:
        read(text)
    assert "\n" not in str(refusal.value).partition("Hint")[0].strip()


def test_model_without_inputs() -> None:
    text = "m () => (float[3] y) { y = Constant<value_floats = [1.0, 2.0, 3.0]>() }"
    program = read(text)
    assert program.inputs == ()
    require_same(text, program, {})


def test_output_that_is_an_input_or_a_weight_or_there_twice() -> None:
    text = """m (float[batch,3] x) => (float[batch,3] x, float[batch,3] y, float[batch,3] again, float[2] w)
        <float[2] w = {1, 2}> { y = Relu(x) again = Identity(y) }"""
    program = read(text)
    assert [spec.name for spec in program.outputs] == ["x_1", "y", "again", "w"]
    x = torch.tensor([[1.0, -2.0, 3.0]])
    assert [one.tolist() for one in program.run(x)] == [[[1, -2, 3]], [[1, 0, 3]], [[1, 0, 3]], [1, 2]]


def test_initializer_that_is_also_an_input_is_a_weight() -> None:
    text = "m (float[batch,3] x, float[3] w) => (float[batch,3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }"
    program = read(text)
    assert [spec.name for spec in program.inputs] == ["x"]
    require_same(text, program, *ROWS)


def test_outputs_that_branches_read_stay_outputs() -> None:
    text = """m (float[batch,3] x, bool c) => (float[batch,3] h, float[batch,3] y) {
        h = Relu(x)
        y = If(c) <then_branch = t () => (float[batch,3] a) { a = Add(h, h) },
                   else_branch = e () => (float[batch,3] b) { b = Neg(h) }>
    }"""
    require_same(text, read(text), *({**feed, "c": np.array(c)} for feed in ROWS for c in (True, False)))


@pytest.mark.parametrize("backend", ["onnx_runtime", "eager"])
def test_artifacts_without_inputs_and_with_branches(backend: str, tmp_path: Path) -> None:
    models = {
        "constant": "m () => (float[3] y) { a = Constant<value_floats = [1.0, 2.0, 3.0]>() y = Neg(a) }",
        "branches": """m (bool c, float[batch,3] x) => (float[batch,3] y) <float[3] w = {1, 2, 3}> {
            y = If(c) <then_branch = t () => (float[batch,3] a) { a = Mul(x, w) },
                       else_branch = e () => (float[batch,3] b) { b = Neg(x) }>
        }""",
    }
    for name, text in models.items():
        onnx.save(parsed(text), tmp_path / f"{name}.onnx")
        recipe = Recipe(str(tmp_path / f"{name}.onnx"), parse_passes("canonicalize"), backend=backend)
        compile_model(recipe, tmp_path / name)
        assert verify(tmp_path / name).passed
