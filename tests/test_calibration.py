"""Activation statistics against numpy on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compiler.calibration import ActivationStatistics, activation_statistics
from compiler.evidence.data import Dataset
from compiler.frontends.torch_export import capture
from compiler.program import Program

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 5)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.dense(x * 2) * attention_mask[..., None]


@pytest.fixture(scope="module")
def program() -> Program:
    dynamic = {name: {0: "batch", 1: "sequence"} for name in ("x", "attention_mask")}
    return capture(
        Masked().eval(), {"x": torch.randn(2, 4, 6), "attention_mask": MASK}, source="masked", dynamic=dynamic
    )


def batches(count: int) -> tuple[tuple[Tensor, Tensor], ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple((torch.randn(2, 4, 6, generator=generator), MASK) for _ in range(count))


def statistics(program: Program, data: Dataset) -> ActivationStatistics:
    (linear,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    return activation_statistics(program, [linear.args[0]], data)[linear.args[0].name]


def test_they_are_those_of_the_values(program: Program) -> None:
    given = batches(3)
    found = statistics(program, Dataset("given", (), given, mask_index=1))
    values = [2 * batch[0].numpy() for batch in given]
    rows = np.concatenate([value[MASK.bool().numpy()] for value in values]).astype(np.float64)
    assert found.row_count == len(rows) == 15
    np.testing.assert_allclose(found.second_moment.numpy(), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
    samples = np.concatenate(values)  # padding included
    np.testing.assert_array_equal(found.maxima.numpy(), samples.max(1))
    np.testing.assert_array_equal(found.minima.numpy(), samples.min(1))
    spread = np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)
    assert found.row_range_power == pytest.approx((spread**2).mean(), rel=1e-5)


def test_the_rounding_noise_is_what_rounding_adds() -> None:
    """Against the measured error of ONNX's dynamic quantization on many values."""
    from compiler.ops.dynamic_quantized_linear import quantize_dynamically

    x = torch.randn(4, 500, 64, generator=torch.Generator().manual_seed(0))
    known = ActivationStatistics(torch.eye(64), x.amin(1), x.amax(1), 1.0, 2000)
    measured = []
    for sample in x:
        codes, scale, zero = quantize_dynamically(sample)
        measured.append(float(((codes - zero) * scale - sample).square().mean()))
    assert known.rounding_noise() == pytest.approx(np.mean(measured), rel=0.03)


def test_without_data_there_are_none(program: Program) -> None:
    nodes = list(program.graph.nodes)
    assert activation_statistics(program, nodes, Dataset("none", (), ())) == {}
