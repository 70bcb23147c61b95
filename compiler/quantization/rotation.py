"""Rotations that spread outliers: a randomized Hadamard matrix of any width, and how it goes into stored weights.

A row vector x of the residual stream becomes x @ R. For width = 2**k * m with m odd, R = S kron(H, C): S are random
signs, H is Sylvester's Hadamard matrix of 2**k, and C is Hartley's matrix of m, with no number above sqrt(2 / m).

Source: Ashkboos et al. 2024, arXiv:2404.00456, section 3.1 (random signs) and 4.1 (widths that are no power of two).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROWS_AT_ONCE = 4096
"""Rows of a weight that are in float64 at a time: a table of the whole vocabulary would take twice its size again."""


def randomized_hadamard(width: int, seed: int) -> Tensor:
    """An orthogonal matrix [width, width] in float64 that spreads every direction over all others."""
    odd = width
    while odd % 2 == 0:
        odd //= 2
    angle = 2 * math.pi * torch.outer(torch.arange(odd), torch.arange(odd)).remainder(odd).double() / odd
    matrix = (angle.cos() + angle.sin()) / math.sqrt(odd)
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    while matrix.shape[0] < width:
        matrix = torch.kron(step, matrix)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (width,), generator=generator, dtype=torch.float64) * 2 - 1
    return signs[:, None] * matrix


def rotated_rows(weight: Tensor, rotation: Tensor, scale: Tensor | None = None) -> Tensor:
    """(weight [rows, width] * scale [width]) @ rotation, computed in float64 and rounded once."""
    basis = rotation if scale is None else scale.double()[:, None] * rotation
    return torch.cat([(part.double() @ basis).to(weight.dtype) for part in torch.split(weight, ROWS_AT_ONCE)])


def rotated_columns(weight: Tensor, rotation: Tensor) -> Tensor:
    """rotation.T @ weight [width, columns], computed in float64 and rounded once."""
    return (rotation.T @ weight.double()).to(weight.dtype)


def rotated_heads(weight: Tensor, rotation: Tensor) -> Tensor:
    """rotation.T @ head, for every head of weight [heads * head_dim, columns]."""
    heads = weight.reshape(-1, rotation.shape[0], weight.shape[-1]).double()  # [heads, head_dim, columns]
    return torch.matmul(rotation.T, heads).reshape(weight.shape).to(weight.dtype)
