"""GridSample, AffineGrid, CenterCropPad and Col2Im: free sizes, forms that aten's operators lack, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from single_node import assert_agrees, node_model, read

from compiler.errors import CompilerError

FLOAT = np.float32
FREE = ["batch", 2, "height", "width"]


def random(*shape: int) -> np.ndarray[Any, Any]:
    """Numbers between -1 and 1."""
    return np.random.default_rng(11).uniform(-1, 1, shape).astype(FLOAT)


def reference(model: onnx.ModelProto, inputs: dict[str, Any]) -> list[Any]:
    """What ONNX's own evaluator gives."""
    return list(ReferenceEvaluator(model).run(None, inputs))


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        (16, {"mode": "bicubic", "padding_mode": "border", "align_corners": 1}),
        (20, {"mode": "linear", "padding_mode": "reflection"}),
    ],
)
def test_grid_sample_keeps_sizes_free(version: int, settings: dict[str, Any], tmp_path: Path):
    grid = (FLOAT, ["batch", "rows", "columns", 2])
    model = node_model("GridSample", {"x": (FLOAT, FREE), "grid": grid}, version, **settings)
    samples = [{"x": random(b, 2, h, 6), "grid": random(b, r, 4, 2)} for b, h, r in [(2, 5, 3), (3, 7, 2)]]
    assert_agrees(model, tmp_path, samples)


def test_grid_sample_trains_the_grid():
    program = read(node_model("GridSample", {"x": (FLOAT, [1, 1, 4, 4]), "grid": (FLOAT, [1, 2, 2, 2])}, 20))
    grid = torch.from_numpy(random(1, 2, 2, 2)).requires_grad_()
    program.graph_module(torch.rand(1, 1, 4, 4), grid)[0].sum().backward()
    assert grid.grad is not None
    assert grid.grad.abs().sum() > 0


def test_affine_grid_keeps_the_batch_free(tmp_path: Path):
    size = np.array([2, 3, 4, 5], np.int64)
    model = node_model("AffineGrid", {"theta": (FLOAT, [2, 2, 3]), "size": size}, 20, align_corners=1)
    assert_agrees(model, tmp_path, [{"theta": random(2, 2, 3)}])


def test_center_crop_pad_where_it_is_open_which_it_does(tmp_path: Path):
    model = node_model("CenterCropPad", {"x": (FLOAT, FREE), "shape": np.array([5, 6], np.int64)}, 18, axes=[2, -1])
    assert_agrees(model, tmp_path, [{"x": random(2, 2, 9, 3)}, {"x": random(3, 2, 4, 8)}], reference)


@pytest.mark.parametrize(
    ("image", "block", "settings"),
    [
        ([5, 6], [2, 3], {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
        ([5, 6], [2, 2], {"pads": [1, 1, 1, 1], "dilations": [2, 1]}),
        ([7], [3], {"strides": [2]}),
    ],
)
def test_col2im(image: list[int], block: list[int], settings: dict[str, Any], tmp_path: Path):
    rank = len(image)
    pads, strides = settings.get("pads", [0] * 2 * rank), settings.get("strides", [1] * rank)
    dilations = settings.get("dilations", [1] * rank)
    places = [
        (image[i] + pads[i] + pads[rank + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(rank)
    ]
    shape = (2, 3 * int(np.prod(block)), int(np.prod(places)))
    stored = {"image": np.array(image, np.int64), "block": np.array(block, np.int64)}
    model = node_model("Col2Im", {"x": (FLOAT, ["batch", *shape[1:]]), **stored}, 18, **settings)
    assert_agrees(model, tmp_path, [{"x": random(*shape)}])


@pytest.mark.parametrize(
    ("rank", "settings", "message"),
    [
        (3, {}, "mode 'linear' for rank 3"),
        (5, {"mode": "cubic"}, "mode 'cubic' for rank 5"),
        (4, {"mode": "area"}, "mode 'area' with padding"),
    ],
)
def test_refusals(rank: int, settings: dict[str, Any], message: str):
    shapes = {"x": (FLOAT, [2] * rank), "grid": (FLOAT, [2] * rank)}
    with pytest.raises(CompilerError, match=message):
        read(node_model("GridSample", shapes, 20, **settings))
