"""SparseGPT against its definition: the optimal brain surgeon, column by column, with each inverse computed anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compiler.pruning.masks import Pattern
from compiler.pruning.sparsegpt import BLOCK, sparsegpt

OUT = 4


def layer(width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    x = torch.randn(3 * width, width, generator=generator, dtype=torch.float64) @ (mixing + torch.eye(width))
    return torch.randn(OUT, width, generator=generator, dtype=torch.float64), x.T @ x / len(x)


def brain_surgeon(weight: Tensor, moment: Tensor, pattern: Pattern) -> Tensor:
    """For inputs from the first to the last: which weights go is decided for some columns at once, from what they are
    by then and the first number of H_j:,j:^-1; one that goes moves those after it by -w / [H^-1]_00 * [H^-1]_0.
    """
    left = weight.clone()
    width = left.shape[1]
    inverses = [torch.linalg.inv(moment[j:, j:]) for j in range(width)]
    step = pattern.group or BLOCK
    stays = torch.ones_like(left, dtype=torch.bool)
    for j in range(width):
        if j % step == 0:
            columns = range(j, min(j + step, width))
            costs = {(i, k): float(left[i, k]) ** 2 / float(inverses[k][0, 0]) for i in range(OUT) for k in columns}
            rows = (
                [list(costs)] if pattern.group is None else [[key for key in costs if key[0] == i] for i in range(OUT)]
            )
            for keys in rows:
                count = int(len(keys) * pattern.sparsity) if pattern.group is None else pattern.group - pattern.stay
                for key in sorted(keys, key=costs.__getitem__)[:count]:
                    stays[key] = False
        for i in range(OUT):
            if not stays[i, j]:
                left[i, j:] -= left[i, j] / inverses[j][0, 0] * inverses[j][0]
                left[i, j] = 0.0
    return left


@pytest.mark.parametrize(
    ("width", "pattern"),
    [
        (24, Pattern(0.5)),
        (BLOCK + 12, Pattern(0.6)),
        (24, Pattern.parse("2-of-4")),
        (BLOCK + 8, Pattern.parse("4-of-8")),
    ],
    ids=["half", "two blocks", "2 of 4", "4 of 8"],
)
def test_it_is_the_brain_surgeon_in_order(width: int, pattern: Pattern) -> None:
    weight, moment = layer(width)
    expected = brain_surgeon(weight, moment, pattern)
    found = sparsegpt(weight, moment, pattern)
    assert found is not None
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(found[1], found[0] != 0)


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern.parse("2-of-4")], ids=str)
def test_it_moves_outputs_less_than_the_same_zeros_alone(pattern: Pattern) -> None:
    weight, moment = layer(48)
    found = sparsegpt(weight, moment, pattern)
    assert found is not None
    plain = weight * found[1]
    error, other = found[0] - weight, plain - weight
    assert float(((error @ moment) * error).sum()) < float(((other @ moment) * other).sum())


def test_the_weight_that_is_given_stays_as_it_is() -> None:
    weight, moment = layer(8)
    for given in (weight, weight[:1]):
        before = given.clone()
        assert sparsegpt(given, moment, Pattern(0.5)) is not None
        assert torch.equal(given, before)


def test_a_moment_without_a_factor_gives_nothing() -> None:
    weight, _ = layer(8)
    assert sparsegpt(weight, torch.zeros(8, 8, dtype=torch.float64), Pattern(0.5)) is None
