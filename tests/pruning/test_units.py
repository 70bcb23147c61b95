"""Which units go and what makes up for them, against least squares on the inputs themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compiler.pruning.units import (
    columns_of,
    kept_by_reconstruction,
    kept_by_score,
    part_lost,
    refitted,
    removal_errors,
    unit_powers,
)

OUT = 5


def layer(units: int, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, units * inner], rows of inputs that hang together, and their second moment, in float64."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(OUT, units * inner, generator=generator, dtype=torch.float64)
    mixing = torch.randn(units * inner, units * inner, generator=generator, dtype=torch.float64)
    x = torch.randn(200, units * inner, generator=generator, dtype=torch.float64) @ mixing
    return weight, x, x.T @ x / len(x)


def least_squares(weight: Tensor, x: Tensor, columns: list[int]) -> tuple[Tensor, float]:
    """The weight of these columns that gives most nearly what all gave, and the mean squared error, summed."""
    y = x @ weight.T
    found = torch.linalg.lstsq(x[:, columns], y).solution
    return found.T, float((x[:, columns] @ found - y).square().sum() / len(x))


def columns_in_loops(units: list[int], inner: int) -> list[int]:
    return [unit * inner + place for unit in units for place in range(inner)]


@pytest.mark.parametrize("inner", [1, 3])
def test_a_unit_alone_costs_what_outputs_move_without_it(inner: int) -> None:
    weight, x, moment = layer(6, inner)
    errors = removal_errors(weight, moment, inner)
    for unit in range(6):
        left = weight.clone()
        left[:, columns_in_loops([unit], inner)] = 0
        assert float(errors[unit]) == pytest.approx(float((x @ (weight - left).T).square().sum() / len(x)))


@pytest.mark.parametrize("inner", [1, 3])
def test_refitted_weights_are_those_of_least_squares(inner: int) -> None:
    weight, x, moment = layer(6, inner)
    units = torch.tensor([0, 2, 5])
    expected, error = least_squares(weight, x, columns_in_loops([0, 2, 5], inner))
    found = refitted(weight, moment, units, inner)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    power = float((x @ weight.T).square().sum() / len(x))
    assert part_lost(weight, found, moment, units, inner) == pytest.approx(error / power)


@pytest.mark.parametrize("inner", [1, 2])
def test_units_go_one_by_one_by_what_least_squares_leaves(inner: int) -> None:
    weight, x, moment = layer(7, inner)
    left = list(range(7))
    while len(left) > 3:
        costs = {}
        for unit in left:
            others = [one for one in left if one != unit]
            costs[unit] = least_squares(weight, x, columns_in_loops(others, inner))[1]
        left.remove(min(costs, key=costs.__getitem__))
        assert kept_by_reconstruction(weight, moment, inner, len(left)).tolist() == left


def test_many_units_go_some_at_a_time_and_as_many_stay_as_are_wanted() -> None:
    weight, x, moment = layer(50, 1)
    kept = kept_by_reconstruction(weight, moment, 1, 11)
    assert len(set(kept.tolist())) == 11
    error = least_squares(weight, x, kept.tolist())[1]
    by_score = kept_by_score(removal_errors(weight, moment, 1), 11)
    assert error < least_squares(weight, x, by_score.tolist())[1]


def test_inputs_of_fewer_directions_than_units_still_have_weights() -> None:
    weight, x, _ = layer(6, 1)
    flat = x.clone()
    flat[:, 3:] = flat[:, :3]
    moment = flat.T @ flat / len(flat)
    left = refitted(weight, moment, torch.tensor([0, 1, 2]), 1)
    torch.testing.assert_close(flat[:, :3] @ left.T, flat @ weight.T)


def test_scores_and_powers() -> None:
    assert kept_by_score(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist() == [0, 1, 3]
    assert columns_of(torch.tensor([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]
    weight = torch.tensor([[1.0, 2.0, 0.0, 1.0], [3.0, 0.0, 1.0, 0.0]])
    assert unit_powers(weight, 2).tolist() == [14.0, 2.0]
