"""Masks against loops that follow the papers, weight by weight."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compiler.pruning.masks import Pattern, pattern_mask, wanda_scores


def scores(out: int = 6, width: int = 16) -> Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(5)).abs()


def lowest_go(values: list[float], count: int) -> list[bool]:
    """True but for the `count` lowest, the first of equals going first."""
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    gone = set(order[:count])
    return [place not in gone for place in range(len(values))]


@pytest.mark.parametrize(("stay", "size"), [(2, 4), (1, 4), (4, 8), (3, 4), (1, 2)])
def test_n_of_m(stay: int, size: int) -> None:
    given = scores()
    expected = [
        [one for at in range(0, 16, size) for one in lowest_go(row[at : at + size], size - stay)]
        for row in given.tolist()
    ]
    pattern = Pattern.parse(f"{stay}-of-{size}")
    assert pattern_mask(given, pattern, "layer").tolist() == expected
    assert pattern_mask(given, pattern, "layer").sum() == 6 * 16 * stay / size


def test_what_fills_no_group_keeps_as_many() -> None:
    given = scores(3, 7)
    found = pattern_mask(given, Pattern.parse("2-of-4"), "layer")
    expected = [[*lowest_go(row[:4], 2), *lowest_go(row[4:], 1)] for row in given.tolist()]
    assert found.tolist() == expected
    assert bool(pattern_mask(scores(3, 6), Pattern.parse("2-of-4"), "layer")[:, 4:].all())


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.7])
def test_wanda_compares_the_weights_of_an_output(sparsity: float) -> None:
    generator = torch.Generator().manual_seed(6)
    weight, x = torch.randn(5, 12, generator=generator), torch.randn(40, 12, generator=generator)
    norms = [math.sqrt(sum(float(x[row, j]) ** 2 for row in range(40))) for j in range(12)]
    expected = [
        lowest_go([abs(float(weight[i, j])) * norms[j] for j in range(12)], int(12 * sparsity)) for i in range(5)
    ]
    found = pattern_mask(wanda_scores(weight, x.T @ x / len(x)), Pattern(sparsity), "row")
    assert found.tolist() == expected


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_magnitude_compares_the_weights_of_a_layer(sparsity: float) -> None:
    given = scores()
    flat = lowest_go(given.flatten().tolist(), int(96 * sparsity))
    assert pattern_mask(given, Pattern(sparsity), "layer").flatten().tolist() == flat


@pytest.mark.parametrize("text", ["2:4", "4-of-2", "4-of-4", "0-of-4", "half"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="is not as 2-of-4"):
        Pattern.parse(text)


def test_patterns_in_words() -> None:
    assert str(Pattern(0.5)) == "50% zeros"
    assert str(Pattern.parse("2-of-4")) == "2 of 4"
