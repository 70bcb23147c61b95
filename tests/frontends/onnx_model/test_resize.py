"""Resize and Upsample: every transformation and rounding, free sizes, old forms, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.frontends.onnx_model.resampling import scaled_size
from compiler.frontends.torch_export import capture
from compiler.program import Program
from compiler.target import Target

TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
FREE = ["batch", 2, "height", "width"]


def resize_model(
    shape: list[Any], *forms: dict[str, Any], version: int = 19, operator: str = "Resize"
) -> onnx.ModelProto:
    """Nodes over x, one for each form: its attributes, and its scales or sizes, which are stored."""
    nodes, stored = [], []
    for index, form in enumerate(forms):
        inputs = ["x"] if version < 11 else ["x", "no_region"]
        for name, dtype in (("scales", np.float32), ("sizes", np.int64)):
            if name in form and version >= 9:
                inputs.append(f"{name}_{index}")
                stored.append(numpy_helper.from_array(np.array(form[name], dtype), inputs[-1]))
            elif version >= 11:
                inputs.append("")
        skipped = ("scales", "sizes") if version >= 9 else ()
        attributes = {name: value for name, value in form.items() if name not in skipped}
        nodes.append(helper.make_node(operator, inputs, [f"y_{index}"], **attributes))
    stored.append(numpy_helper.from_array(np.zeros(0, np.float32), "no_region"))
    graph = helper.make_graph(
        nodes,
        "resizing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"y_{index}", TensorProto.FLOAT, None) for index in range(len(forms))],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def read(model: onnx.ModelProto) -> Program:
    """The model as a Program, named dims symbolic."""
    return program_from_onnx(ir.serde.deserialize_model(model), doing="reading", source="test")


def targets(program: Program) -> list[str]:
    """The names of the operators that the program calls."""
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def lowered_session(program: Program, folder: Path) -> onnxruntime.InferenceSession:
    """The program as our backend writes it."""
    return onnxruntime.InferenceSession(folder / OnnxRuntime().lower(program, Target("cpu"), folder).entry)


def image(*shape: int) -> np.ndarray[Any, Any]:
    """Random pixels."""
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def assert_same(found: Any, expected: Any) -> None:
    """Each output as expected, to rounding in float32."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_against_the_definition(transformation: str):
    modes: list[dict[str, Any]] = [{"mode": "nearest", "nearest_mode": rounding} for rounding in ROUNDINGS]
    modes += [{"mode": "linear"}, {"mode": "cubic"}, {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}]
    scales = [1, 1, 0.6, 3]
    forms = [{"scales": scales, "coordinate_transformation_mode": transformation, **mode} for mode in modes]
    model, x = resize_model([1, 2, 5, 4], *forms), image(1, 2, 5, 4)
    assert_same(read(model).run(torch.from_numpy(x)), ReferenceEvaluator(model).run(None, {"x": x}))


@pytest.mark.parametrize("stated", [{"scales": [1.0, 1.0, 2.0, 2.0]}, {"sizes": [7, 9], "axes": [2, 3]}])
def test_height_and_width_stay_free(stated: dict[str, Any], tmp_path: Path):
    forms = [
        {"mode": "nearest"},
        {"mode": "nearest", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    ]
    model = resize_model(FREE, *({**form, **stated} for form in forms))
    program = read(model)
    session = lowered_session(program, tmp_path)
    for sizes in [(2, 2, 5, 7), (1, 2, 8, 4)]:
        x = image(*sizes)
        expected = ReferenceEvaluator(model).run(None, {"x": x})
        assert_same(program.run(torch.from_numpy(x)), expected)
        assert_same(session.run(None, {"x": x}), expected)


@pytest.mark.parametrize(
    ("shape", "form", "operator"),
    [
        (["batch", 2, "length"], {"scales": [1, 1, 2.0]}, "aten.upsample_nearest1d.default"),
        (FREE, {"scales": [1, 1, 2.0, 2.0]}, "aten.upsample_nearest2d.default"),
        (FREE, {"scales": [1, 1, 0.5, 0.5], "mode": "linear"}, "aten.upsample_bilinear2d.default"),
        (["batch", 2, "length"], {"scales": [1, 1, 2.0], "mode": "linear"}, "aten.upsample_linear1d.default"),
        ([1, 2, 3, "height", 4], {"scales": [1, 1, 2, 2, 2], "mode": "linear"}, "aten.upsample_trilinear3d.default"),
        (FREE, {"scales": [1, 1, 2.0, 2.0], "mode": "cubic"}, "aten.upsample_bicubic2d.default"),
    ],
)
def test_atens_own_operator_is_one_resize(shape: list[Any], form: dict[str, Any], operator: str, tmp_path: Path):
    model = resize_model(shape, form)
    program = read(model)
    assert operator in targets(program)
    session = lowered_session(program, tmp_path)
    assert [node.op_type for node in onnx.load(next(tmp_path.glob("*.onnx"))).graph.node].count("Resize") == 1
    x = image(*(one if isinstance(one, int) else 6 for one in shape))
    assert_same(session.run(None, {"x": x}), ReferenceEvaluator(model).run(None, {"x": x}))


@pytest.mark.parametrize(("version", "operator"), [(7, "Upsample"), (9, "Upsample"), (10, "Resize"), (11, "Resize")])
def test_old_forms_against_onnx_runtime(version: int, operator: str):
    rules = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if version == 11 else {}
    forms = [{"scales": [1.0, 1.0, 2.0, 3.0], "mode": mode, **rules} for mode in ("nearest", "linear")]
    model, x = resize_model([1, 2, 5, 4], *forms, version=version, operator=operator), image(1, 2, 5, 4)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert_same(read(model).run(torch.from_numpy(x)), session.run(None, {"x": x}))


def test_upsample_1_scales_height_and_width():
    model = resize_model([1, 1, 2, 2], {"height_scale": 2.0, "width_scale": 3.0}, version=1, operator="Upsample")
    found = read(model).run(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))[0]
    expected = np.kron(np.array([[1, 2], [3, 4]]), np.ones((2, 3)))
    np.testing.assert_array_equal(found[0, 0].numpy(), expected)


def test_antialiasing_trains():
    program = read(resize_model([1, 1, 9, 9], {"scales": [1, 1, 0.4, 0.4], "mode": "cubic", "antialias": 1}))
    x = torch.randn(1, 1, 9, 9, requires_grad=True)
    program.graph_module(x)[0].pow(2).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"sizes": [4, 4], "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}, "needs sizes that are known"),
        ({"sizes": [4, 4], "axes": [2, 3], "mode": "linear", "antialias": 1}, "antialiasing needs sizes"),
        ({"scales": [1.0, 2.0, 2.0]}, "3 scales for 4 axes"),
        ({"scales": [1.0, 1.0, 2.0, 2.0], "mode": "area"}, "mode 'area' is none of"),
        ({"scales": [1.0, 1.0, 2.0, 2.0], "nearest_mode": "up"}, "nearest mode 'up' is not known"),
        ({"scales": [1.0, 1.0, 2.0, 2.0], "coordinate_transformation_mode": "here"}, "transformation 'here'"),
        ({}, "neither scales nor sizes"),
    ],
)
def test_refusals(stated: dict[str, Any], message: str):
    with pytest.raises(CompilerError, match=message):
        read(resize_model(FREE, stated))


@pytest.mark.parametrize(("size", "scale", "expected"), [(10, 0.7, 7), (5, 0.6, 3), (7, 1.5, 10), (3, 1 / 3, 1)])
def test_sizes_are_those_of_the_fraction_meant(size: int, scale: float, expected: int):
    assert scaled_size(size, float(np.float32(scale))) == expected


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_torchs_interpolate_is_one_resize(mode: str, tmp_path: Path):
    class Enlarge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(x, scale_factor=2.0, mode=mode)

    x = torch.from_numpy(image(2, 3, 4, 5))
    program = capture(Enlarge(), {"x": x}, source="enlarge", dynamic={"x": {0: "batch", 2: "height", 3: "width"}})
    found = lowered_session(program, tmp_path).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, Enlarge()(x).numpy(), rtol=1e-5, atol=1e-5)
