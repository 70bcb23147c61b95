"""A third party's operator is read by a function in a plugin file, like the built-in ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compiler.cli import main
from compiler.frontends.onnx_model.operator_table import TABLE
from compiler.runtime.session import Session

PLUGIN = '''"""Reads org.example.Twice."""

from torch import Tensor

from compiler.frontends.onnx_model.operator_table import operator
from compiler.hookspecs import hookimpl


@operator("Twice", domain="org.example")
def twice(x: Tensor, *, shift: float = 0.0) -> Tensor:
    return 2 * x + shift


@hookimpl
def register_passes():
    return []
'''


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """relu(Twice(x))."""
    shape = ["batch", 4]
    graph = helper.make_graph(
        [
            helper.make_node("Twice", ["x"], ["a"], name="twice", domain="org.example", shift=-1.0),
            helper.make_node("Relu", ["a"], ["y"]),
        ],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("org.example", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_an_operator_from_a_plugin_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 1
    assert "@operator in a --plugin file" in capsys.readouterr().err
    plugin = tmp_path / "twice.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    try:
        assert main([str(model), "--plugin", str(plugin), "--passes", "canonicalize", "-o", str(tmp_path / "out")]) == 0
    finally:
        TABLE.pop(("org.example", "Twice"), None)
    x = np.array([[-1.0, 0.0, 1.0, 2.0]], np.float32)
    np.testing.assert_allclose(Session.open(tmp_path / "out").run({"x": x})["y"], [[0.0, 0.0, 1.0, 3.0]])
