"""Module paths from what exporters leave in ONNX nodes."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compiler.frontends.onnx_model.scope_names import SCOPES_KEY, scope_path


def path_of(name: str, scopes: str | None = None) -> str:
    return scope_path(ir.node("Relu", [], name=name, metadata_props={SCOPES_KEY: scopes} if scopes else {}))


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'encoder', 'encoder.layer.0', 'linear_1']", "encoder.layer.0"),
        ("['encoder.layer.0.attention', 'softmax']", "encoder.layer.0.attention"),
        ("['', 'add']", ""),
        ("['add']", ""),
        ("[", ""),
        ("42", ""),
    ],
)
def test_the_newer_exporter_lists_scopes(scopes: str, path: str):
    assert path_of("node_linear_1", scopes) == path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/encoder/layer.0/attention/self/MatMul_1", "encoder.layer.0.attention.self"),
        ("encoder/layer_0/MatMul:0", "encoder.layer_0"),
        ("MatMul_12", ""),
        ("", ""),
    ],
)
def test_others_put_folders_in_names(name: str, path: str):
    assert path_of(name) == path
