"""Layers of a low rank by pivots: the same product in fewer numbers, of odd weights too, and while it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compiler.structured.modules import FACTOR, LEARNING_SIZE, learn, settle
from compiler.structured.pivoted_linear import PivotedLinear
from compiler.structured.projection import Factors, project
from compiler.structured.structure import Structure, structure_of

SHAPES = [(9, 6), (6, 9), (8, 8), (40, 3)]


def factors_of(weight: Tensor, ratio: float = 0.8) -> Factors:
    return project(weight, structure_of("pivoted-low-rank", *weight.shape, 4, ratio))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_product_of_thin_factors_in_fewer_numbers(shape: tuple[int, int], bias: bool) -> None:
    factors, added = factors_of(drawn(*shape)), drawn(shape[0], seed=2)
    module = PivotedLinear(factors, added if bias else None, torch.float64)
    for lead in ((), (5,), (2, 3)):
        x = drawn(*lead, shape[1], seed=1)
        torch.testing.assert_close(module(x), x @ factors.dense().T + (added if bias else 0))
    rank = factors.structure.rank
    stored = sum(one.numel() for one in module.parameters()) - bias * shape[0]
    assert stored == factors.structure.parameter_count == rank * (sum(shape) - rank) <= 0.8 * shape[0] * shape[1]
    assert (rank + 1) * (sum(shape) - rank - 1) > 0.8 * shape[0] * shape[1]


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_pivots_are_columns_of_the_product_and_the_others_sums_of_them(shape: tuple[int, int]) -> None:
    """In plain loops, from what is stored."""
    factors = factors_of(drawn(*shape))
    module, dense = PivotedLinear(factors, None, torch.float64), factors.dense()
    narrow = dense if module.among_inputs else dense.T
    order = (module.order if module.among_inputs else module.order.argsort()).tolist()
    rank = factors.structure.rank
    pivots, others = order[:rank], order[rank:]
    assert sorted(order) == list(range(min(shape)))
    columns, rest = (
        (module.second_factor[0], module.first_factor[0])
        if module.among_inputs
        else (module.first_factor[0].T, module.second_factor[0].T)
    )
    for place, pivot in enumerate(pivots):
        for row in range(max(shape)):
            assert columns[row, place].item() == pytest.approx(narrow[row, pivot].item(), abs=1e-9)
    for place, other in enumerate(others):
        for row in range(max(shape)):
            total = sum(narrow[row, pivot].item() * rest[index, place].item() for index, pivot in enumerate(pivots))
            assert total == pytest.approx(narrow[row, other].item(), abs=1e-9)


def test_numbers_stay_small_for_pivots_are_chosen() -> None:
    """The first columns of this weight are nearly alike: as pivots they would make numbers of some 1e6."""
    weight = drawn(60, 20)
    weight[:, 1:10] = weight[:, :1] + 1e-6 * weight[:, 1:10]
    factors = project(weight, Structure.of(60, 20, 1, 1, 11))
    module = PivotedLinear(factors, None, torch.float64)
    assert float(module.first_factor[0].detach().abs().max()) < 2
    torch.testing.assert_close(module(torch.eye(20, dtype=torch.float64)).T, factors.dense())


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_weight_of_a_lower_rank_than_is_stored(shape: tuple[int, int], rank: int) -> None:
    weight = drawn(shape[0], rank) @ drawn(rank, shape[1], seed=1)
    module = PivotedLinear(factors_of(weight), None, torch.float64)
    found = module(torch.eye(shape[1], dtype=torch.float64)).T
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_learning_stores_both_factors_at_one_size(shape: tuple[int, int]) -> None:
    module = PivotedLinear(factors_of(drawn(*shape)), drawn(shape[0]), torch.float64)
    x = drawn(4, shape[1])
    before, stored = module(x), {name: one.detach().clone() for name, one in module.named_parameters()}
    learn(module)
    torch.testing.assert_close(module(x), before)
    for name, one in module.named_parameters():
        if FACTOR.search(name):
            assert float(one.detach().square().mean()) == pytest.approx(LEARNING_SIZE**2)
    settle(module)
    for name, one in module.named_parameters():
        torch.testing.assert_close(one.detach(), stored[name])


def test_what_has_no_pivots() -> None:
    with pytest.raises(ValueError, match="pivots are those of one block"):
        PivotedLinear(project(drawn(8, 8), Structure.of(8, 8, 2, 2, 1)), None, torch.float64)
    with pytest.raises(ValueError, match="a weight of 8 x 6 of rank 6 has no other columns"):
        PivotedLinear(project(drawn(8, 6), Structure.of(8, 6, 1, 1, 6)), None, torch.float64)
