from __future__ import annotations

import math

import pytest
import torch

from compiler.quantization.rotation import randomized_hadamard, rotated_columns, rotated_rows


@pytest.mark.parametrize("width", [1, 2, 3, 8, 9, 12, 30, 64, 576, 896])
def test_every_width_has_an_orthogonal_matrix(width: int):
    rotation = randomized_hadamard(width, seed=3)
    assert rotation.shape == (width, width)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [64, 576, 896])
def test_no_direction_stays_alone(width: int):
    assert float(randomized_hadamard(width, seed=0).abs().max()) <= math.sqrt(2 / width) + 1e-12


def test_a_power_of_two_is_hadamards_matrix_up_to_signs_of_rows():
    from scipy.linalg import hadamard

    rotation = randomized_hadamard(16, seed=1) * 4
    signs = rotation[:, :1]  # Sylvester's first column is all ones
    torch.testing.assert_close(signs * rotation, torch.from_numpy(hadamard(16)).double(), rtol=0, atol=1e-12)


def test_the_seed_decides_the_signs():
    assert torch.equal(randomized_hadamard(24, seed=1), randomized_hadamard(24, seed=1))
    assert not torch.equal(randomized_hadamard(24, seed=1), randomized_hadamard(24, seed=2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_weights_are_rotated_in_float64_and_rounded_once(dtype: torch.dtype, tolerance: float):
    rotation, scale = randomized_hadamard(12, seed=0), torch.rand(12, dtype=torch.float64)
    weight = torch.randn(5000, 12).to(dtype)  # more rows than are taken at once
    rows = rotated_rows(weight, rotation, scale)
    columns = rotated_columns(weight.T.contiguous(), rotation)
    assert rows.dtype == columns.dtype == dtype
    torch.testing.assert_close(rows.double(), weight.double() * scale @ rotation, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(columns.double(), (weight.double() @ rotation).T, rtol=tolerance, atol=tolerance)
