"""Fidelity against plain loops, and its corner cases."""

from __future__ import annotations

import math

import pytest
import torch

from compiler.evidence.cosines import row_cosines
from compiler.evidence.fidelity import compare_outputs, neighbour_agreement


def plain_cosine(left: list[float], right: list[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(a * a for a in left)) / math.sqrt(sum(b * b for b in right))


def test_cosines_equal_a_plain_loop() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(7, 5), torch.randn(7, 5)
    expected = [plain_cosine(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    torch.testing.assert_close(row_cosines(left, right), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_zero_and_broken_rows() -> None:
    zero, one, broken = torch.zeros(1, 3), torch.ones(1, 3), torch.full((1, 3), float("nan"))
    assert row_cosines(zero, zero).item() == 1.0
    assert row_cosines(zero, one).item() == 0.0
    assert row_cosines(broken, one).item() == -1.0


def test_neighbours_equal_a_plain_loop() -> None:
    torch.manual_seed(1)
    left = torch.randn(20, 4)
    right = left + 0.5 * torch.randn(20, 4)

    def nearest(samples: list[list[float]]) -> list[int]:
        return [
            max((j for j in range(len(samples)) if j != i), key=lambda j: plain_cosine(samples[i], samples[j]))
            for i in range(len(samples))
        ]

    pairs = zip(nearest(left.tolist()), nearest(right.tolist()), strict=True)
    assert neighbour_agreement(left, right) == sum(a == b for a, b in pairs) / 20
    assert neighbour_agreement(left[:2], right[:2]) is None


def test_padding_does_not_count() -> None:
    reference = torch.randn(2, 3, 4)
    found = reference.clone()
    found[1, 2] = -found[1, 2]
    mask = torch.tensor([[True, True, True], [True, True, False]])
    fidelity = compare_outputs([found], [reference], [mask], "encoder")
    assert fidelity.row_count == 5
    assert fidelity.worst_cosine > 1 - 1e-9
    assert compare_outputs([found], [reference], [None], "encoder").worst_cosine < -1 + 1e-9


def test_models_that_choose_are_judged_by_their_choice() -> None:
    reference = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = torch.tensor([[0.4, 0.5], [0.4, 0.5], [0.0, 1.0], [1.0, 0.0]])
    fidelity = compare_outputs([found], [reference], [None], "classifier")
    assert fidelity.top1_agreement == 0.75
    assert fidelity.drop == 0.25
    assert compare_outputs([found], [reference], [None], "unknown").top1_agreement is None


def test_maps_of_several_sizes_are_compared_sample_by_sample() -> None:
    reference = [torch.ones(2, 1, 4, 6), torch.ones(1, 1, 8, 3)]
    found = [reference[0].clone(), torch.zeros(1, 1, 8, 3)]
    found[1][0, 0, :4] = 1.0
    fidelity = compare_outputs(found, reference, [None, None], "unknown")
    assert fidelity.row_count == 3
    assert fidelity.worst_cosine == pytest.approx(0.5**0.5)
    assert fidelity.largest_error == 1.0


def test_single_numbers_are_compared_together() -> None:
    reference = [torch.tensor([[0.9], [0.1]]), torch.tensor([[0.5]])]
    found = [torch.tensor([[0.1], [0.9]]), torch.tensor([[0.5]])]
    fidelity = compare_outputs(found, reference, [None, None], "unknown")
    assert fidelity.row_count == 1
    assert fidelity.worst_cosine == pytest.approx(plain_cosine([0.1, 0.9, 0.5], [0.9, 0.1, 0.5]))
