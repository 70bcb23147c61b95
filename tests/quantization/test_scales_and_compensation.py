"""Grids clip no more than pays; compensated codes lie on the grid and lessen the error of the outputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.quantization.compensation import compensated_codes
from compiler.quantization.scales import Grid, asymmetric_grid, lopsided_grid, symmetric_grid

GRIDS = (symmetric_grid, lopsided_grid, asymmetric_grid)


def squared_error(grid: Grid, weight: torch.Tensor) -> torch.Tensor:
    return (grid.values(grid.codes(weight)) - weight).square().sum(-1)


def rows(seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(seed)) ** 3 + shift


@pytest.mark.parametrize("make", GRIDS)
@given(seed=st.integers(0, 500), bits=st.sampled_from([4, 6, 8]), shift=st.sampled_from([0.0, 2.0]))
def test_clipping_never_costs(make, seed: int, bits: int, shift: float) -> None:
    weight = rows(seed, shift)
    clipped, full = make(weight, bits, "mse"), make(weight, bits, "none")
    assert bool((squared_error(clipped, weight) <= squared_error(full, weight) * (1 + 1e-6)).all())


@pytest.mark.parametrize("make", GRIDS)
@given(seed=st.integers(0, 500), bits=st.sampled_from([4, 8]))
def test_unclipped_values_are_off_by_half_a_step_at_most(make, seed: int, bits: int) -> None:
    weight = rows(seed)
    grid = make(weight, bits, "none")
    error = (grid.values(grid.codes(weight)) - weight).abs()
    steps = 1.001 if make is asymmetric_grid else 0.501  # a zero point is rounded too
    inside = error <= steps * grid.scale.abs()
    extreme = weight.abs() == weight.abs().amax(-1, keepdim=True)
    other_side = (weight.sign() != weight.gather(-1, weight.abs().argmax(-1, keepdim=True)).sign()) & (
        weight.abs() >= 0.9 * weight.abs().amax(-1, keepdim=True)
    )
    assert bool((inside | extreme | other_side).all())


@pytest.mark.parametrize("make", GRIDS)
def test_rows_of_zeros_stay_zeros(make) -> None:
    weight = torch.zeros(2, 16)
    grid = make(weight, 8, "mse")
    assert torch.equal(grid.values(grid.codes(weight)), weight)


def test_compensated_codes_lessen_the_error_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator) @ torch.randn(12, 70, generator=generator)
    x += 0.2 * torch.randn(500, 70, generator=generator)
    weight = torch.randn(30, 70, generator=generator)
    grid = symmetric_grid(weight, 4, "mse")
    codes = compensated_codes(weight, grid, x.T @ x / 500)
    assert bool(((codes >= grid.low) & (codes <= grid.high) & (codes == codes.round())).all())
    error = [float(((grid.values(one) - weight) @ x.T).square().mean()) for one in (codes, grid.codes(weight))]
    assert error[0] < 0.6 * error[1]


@pytest.mark.parametrize("moment", [torch.zeros(8, 8), torch.full((8, 8), torch.nan)])
def test_a_moment_that_cannot_be_factored_gives_the_nearest_codes(moment: torch.Tensor) -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    grid = symmetric_grid(weight, 8, "mse")
    assert torch.equal(compensated_codes(weight, grid, moment), grid.codes(weight))


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    grid = symmetric_grid(weight, 8, "mse")
    assert torch.equal(compensated_codes(weight, grid, torch.eye(8)), grid.codes(weight))
