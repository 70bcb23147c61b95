"""Grids clip no more than pays; compensated codes lie on the grid and lessen the error of the outputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.quantization.compensation import compensated_codes, damped, refitted_scales
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
    codes = compensated_codes(weight, grid, damped(x.T @ x / 500, 500))
    assert bool(((codes >= grid.low) & (codes <= grid.high) & (codes == codes.round())).all())
    error = [float(((grid.values(one) - weight) @ x.T).square().mean()) for one in (codes, grid.codes(weight))]
    assert error[0] < 0.6 * error[1]


@pytest.mark.parametrize("bits", [2, 4])
def test_compensated_codes_are_those_of_optimal_brain_surgery(bits: int) -> None:
    """The update as it is derived, with the inverse itself (Frantar et al. 2022, arXiv:2208.11580, eqs. 3 and 4)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    weight = torch.randn(5, 40, generator=generator)
    grid = asymmetric_grid(weight, bits, "mse")
    firm = damped(x.T @ x / 200, 200)
    found = compensated_codes(weight, grid, firm)
    inverse, rest = torch.linalg.inv(firm.double()), weight.double().clone()
    for index in torch.argsort(firm.diagonal(), descending=True).tolist():
        for row in range(5):
            scale, zero = float(grid.scale[row]), float(grid.zero[row])
            code = min(max(round(float(rest[row, index]) / scale) + zero, grid.low), grid.high)
            assert float(found[row, index]) == code
            error = (rest[row, index] - (code - zero) * scale) / inverse[index, index]
            rest[row] -= error * inverse[index]
        inverse -= torch.outer(inverse[:, index], inverse[index]) / inverse[index, index]


def test_refitted_scales_are_those_of_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 24, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 24, generator=generator)
    blocks = weight.reshape(3, 3, 8)
    grid = asymmetric_grid(blocks, 2, "mse")
    codes = grid.codes(blocks)
    found = refitted_scales(weight, grid, codes, (x.T @ x / 300).float())
    for row in range(3):
        columns = torch.block_diag(*(codes - grid.zero)[row].double()).T  # [in, blocks]
        expected = torch.linalg.lstsq(x @ columns, (x @ weight[row].double())[:, None]).solution
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-3, atol=1e-5)


def test_a_block_of_zeros_keeps_its_scale() -> None:
    weight = torch.zeros(2, 16)
    weight[:, :8] = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    blocks = weight.reshape(2, 2, 8)
    grid = asymmetric_grid(blocks, 4, "mse")
    found = refitted_scales(weight, grid, grid.codes(blocks), torch.eye(16))
    assert torch.equal(found[:, 1], grid.scale[:, 1])


@pytest.mark.parametrize("clip_to", [lopsided_grid, asymmetric_grid])
def test_important_weights_are_nearer(clip_to) -> None:
    weight = rows(3)
    importance = torch.ones(40)
    importance[:4] = 1000.0
    plain, weighted = clip_to(weight, 4, "mse"), clip_to(weight, 4, "mse", importance)
    errors = [(grid.values(grid.codes(weight)) - weight)[:, :4].square().sum() for grid in (weighted, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("moment", [torch.zeros(8, 8), torch.full((8, 8), torch.nan)])
def test_a_moment_that_cannot_be_factored_gives_the_nearest_codes(moment: torch.Tensor) -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    grid = symmetric_grid(weight, 8, "mse")
    assert torch.equal(compensated_codes(weight, grid, damped(moment, 9)), grid.codes(weight))


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    grid = symmetric_grid(weight, 8, "mse")
    assert torch.equal(compensated_codes(weight, grid, torch.eye(8)), grid.codes(weight))
