"""NonMaxSuppression and RoiAlign against ONNX Runtime, with free counts of boxes, and training through regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from single_node import assert_agrees, node_model, read

from compiler.errors import CompilerError
from compiler.ops.non_max_suppression import non_max_suppression
from compiler.ops.roi_align import roi_align, roi_align_reference

FLOAT = np.float32


def boxes(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Boxes in [0, 10], two corners each in any order."""
    return np.random.default_rng(seed).uniform(0, 10, (*shape, 4)).astype(FLOAT)


def regions(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Boxes x1 < x2, y1 < y2, some of them beyond the image."""
    random = np.random.default_rng(seed)
    start = random.uniform(-2, 8, (count, 2))
    return np.concatenate([start, start + random.uniform(0.2, 9, (count, 2))], 1).astype(FLOAT)


@pytest.mark.parametrize("center_point", [0, 1])
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_non_max_suppression(center_point: int, threshold: float | None, tmp_path: Path):
    model = node_model(
        "NonMaxSuppression",
        {
            "boxes": (FLOAT, ["batch", "count", 4]),
            "scores": (FLOAT, ["batch", 2, "count"]),
            "most": np.array([3], np.int64),
            "iou": np.array([0.2], FLOAT),
            "threshold": None if threshold is None else np.array([threshold], FLOAT),
        },
        11,
        center_point_box=center_point,
    )
    samples = [
        {"boxes": boxes(b, n), "scores": np.random.default_rng(n).uniform(0, 1, (b, 2, n)).astype(FLOAT)}
        for b, n in [(2, 12), (1, 30)]
    ]
    assert_agrees(model, tmp_path, samples)


def test_nothing_is_kept_without_a_limit():
    kept = non_max_suppression(torch.rand(1, 5, 4), torch.rand(1, 1, 5), None, None, None, False)
    assert kept.shape == (0, 3)


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        (10, {"sampling_ratio": 2}),
        (16, {"sampling_ratio": 0}),
        (16, {"sampling_ratio": 2, "coordinate_transformation_mode": "output_half_pixel"}),
    ],
)
def test_roi_align(version: int, settings: dict[str, Any], tmp_path: Path):
    shapes = {
        "x": (FLOAT, ["batch", 3, "height", "width"]),
        "rois": (FLOAT, ["count", 4]),
        "batches": (np.int64, ["count"]),
    }
    common = {"output_height": 2, "output_width": 3, "spatial_scale": 0.8}
    model = node_model("RoiAlign", shapes, version, **settings, **common)
    samples = [
        {
            "x": np.random.default_rng(1).standard_normal((2, 3, *size)).astype(FLOAT),
            "rois": regions(count),
            "batches": np.arange(count) % 2,
        }
        for count, size in [(5, (8, 9)), (2, (6, 12))]
    ]
    assert_agrees(model, tmp_path, samples)


def test_roi_align_by_maximum_against_the_definition():
    shapes = {"x": (FLOAT, [2, 2, 8, 9]), "rois": (FLOAT, [4, 4]), "batches": (np.int64, [4])}
    model = node_model("RoiAlign", shapes, 16, mode="max", output_height=2, output_width=2, sampling_ratio=2)
    x = np.random.default_rng(1).standard_normal((2, 2, 8, 9)).astype(FLOAT)
    sample = {"x": x, "rois": regions(4), "batches": np.zeros(4, np.int64)}
    found = read(model).run(*(torch.from_numpy(one) for one in sample.values()))[0]
    (expected,) = ReferenceEvaluator(model).run(None, sample)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("maximum", [False, True])
def test_gradients_of_regions(maximum: bool):
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.3, 0.4, 4.6, 3.7], [1.2, 0.1, 2.9, 4.8]], dtype=torch.float64, requires_grad=True)
    where = torch.zeros(2, dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda a, b: roi_align(a, b, where, 2, 2, 2, 1.0, True, maximum), (x, rois))


def test_the_fake_result_has_the_shape_of_the_real_one():
    inputs = torch.randn(2, 3, 8, 8), torch.from_numpy(regions(5)), torch.zeros(5, dtype=torch.int64)
    real = roi_align_reference(*inputs, 4, 3, 0, 1.0, False, False)
    assert real.shape == roi_align(*(one.to("meta") for one in inputs), 4, 3, 0, 1.0, False, False).shape


@pytest.mark.slow
def test_schemas_fakes_and_autograd_agree():
    x, rois = torch.randn(2, 2, 6, 6, requires_grad=True), torch.from_numpy(regions(2)).requires_grad_()
    settings = 2, 2, 2, 1.0, True, False
    torch.library.opcheck(torch.ops.regraft.roi_align.default, (x, rois, torch.tensor([0, 1]), *settings))
    limits = torch.tensor([2]), torch.tensor([0.3]), None, False
    suppress = torch.ops.regraft.non_max_suppression.default
    torch.library.opcheck(suppress, (torch.from_numpy(boxes(1, 6)), torch.rand(1, 2, 6), *limits))


def test_an_unknown_mode_is_refused():
    shapes = {"x": (FLOAT, [2, 2, 8, 9]), "rois": (FLOAT, [4, 4]), "batches": (np.int64, [4])}
    with pytest.raises(CompilerError, match="mode 'sum' is not known"):
        read(node_model("RoiAlign", shapes, 16, mode="sum"))
