"""Scales in a byte each beside a number a row, against the definition in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.calibration import ActivationStatistics
from compiler.quantization.byte_scales import UNIT, exact_bytes, nearest_bytes
from compiler.quantization.modules import BlockQuantizedLinear
from compiler.quantization.scales import Grid
from compiler.quantization.stand_ins import BlockForm, LinearWeights, Rounding, block_linear


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_those_of_the_definition(signed: bool) -> None:
    scales = drawn(5, 7) * torch.logspace(-4, 1, 5)[:, None]
    if not signed:
        scales = scales.abs() * torch.tensor([1, -1, 1, -1, 1])[:, None]
    held = nearest_bytes(scales)
    assert held is not None
    assert (held.codes.dtype, held.rows.dtype) == (torch.int8 if signed else torch.uint8, torch.float16)
    most = 127 if signed else 255
    for r in range(5):
        step = float(np.float16(float(scales[r].abs().max()) / (most * UNIT))) * UNIT
        step *= -1 if not signed and r % 2 else 1
        for b in range(7):
            code = max(-most, min(most, round(float(scales[r, b]) / step)))
            assert int(held.codes[r, b]) == (code or (-1 if signed and scales[r, b] < 0 else 1))
            assert float(held.values[r, b]) == int(held.codes[r, b]) * step  # exact in float32


def test_what_was_rounded_is_found_again_in_any_part_of_the_rows() -> None:
    held = nearest_bytes(drawn(64, 18, seed=1).abs() * 0.01)
    assert held is not None
    again = exact_bytes(held.values[10:20])
    assert again is not None
    assert torch.equal(again.codes, held.codes[10:20])
    assert torch.equal(again.rows, held.rows[10:20])
    assert exact_bytes(drawn(64, 18)) is None
    assert exact_bytes(drawn(64, 18).abs()) is None


def test_no_scale_becomes_zero_and_zeros_stay_where_they_may() -> None:
    scales = torch.tensor([[1.0, 1e-9, -1e-9, 0.0]])
    without, held = nearest_bytes(scales), nearest_bytes(scales, with_zero=True)
    assert without is not None
    assert held is not None
    assert without.codes.tolist() == [[127, 1, -1, 1]]
    assert held.codes.tolist() == [[127, 0, 0, 0]]
    zeros = exact_bytes(torch.zeros(2, 3))
    assert zeros is not None
    assert torch.equal(zeros.values, torch.zeros(2, 3))


@pytest.mark.parametrize("factor", [1e-12, 1e9, float("inf"), float("nan")])
def test_rows_without_a_number_in_float16(factor: float) -> None:
    assert nearest_bytes(torch.ones(2, 3) * factor) is None
    grid = Grid(torch.full((2, 3, 1), 0.1 * factor), torch.zeros(2, 3, 1), 0, 15)
    torch.testing.assert_close(grid.in_bytes().scale, grid.in_half().scale, rtol=0, atol=0, equal_nan=True)


def test_a_scale_alone_in_its_row_stays_in_half() -> None:
    grid = Grid(drawn(6, 1, 1).abs(), torch.zeros(6, 1, 1), 0, 15)
    assert torch.equal(grid.in_bytes().scale, grid.in_half().scale)


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_layers_have_such_scales_and_lose_little_by_them(bits: int, rounding: Rounding) -> None:
    weight, x = drawn(48, 96), drawn(256, 96, seed=3)
    statistics = ActivationStatistics(x.T @ x / len(x), x.amin(0)[None], x.amax(0)[None], 1.0, len(x))
    layer = LinearWeights(weight, None, statistics)
    expected = x @ weight.T
    errors = {}
    for form in (BlockForm(bits, 32, "mse"), BlockForm(bits, 32, "mse", scale_bits=8)):
        module = block_linear(layer, form, rounding)
        assert (exact_bytes(module.scales) is not None) == (form.scale_bits == 8)
        errors[form.scale_bits] = float((module(x) - expected).norm() / expected.norm())
    assert errors[8] < 1.05 * errors[16] + 3e-3


def test_scales_that_were_learned_are_stored_as_before() -> None:
    form = BlockForm(4, 32, "mse", scale_bits=8)
    module = block_linear(LinearWeights(drawn(16, 96), None, None), form, "nearest")
    assert isinstance(module, BlockQuantizedLinear)
    before = module.scales.clone()
    module.learn_scales()
    assert module.gains is not None
    module.gains.data += 0.1 * drawn(*module.gains.shape, seed=2)
    module.settle()
    assert not torch.equal(module.scales, before)
    assert exact_bytes(module.scales) is not None
