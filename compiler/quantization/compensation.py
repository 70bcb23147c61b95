"""Rounding a weight column by column, each later column making up for the error so far (GPTQ).

For y = x @ w with inputs of second moment H = E[x^T x], rounding input i of w changes y by an error that the rounding of
the inputs after i can partly undo; the best correction follows from the Cholesky factor of H^-1.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1, with columns in order of decreasing H_ii ("act-order").
"""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.quantization.scales import Grid

DAMPING = 0.01
"""Added to the diagonal of H, as a part of its mean: keeps rarely seen inputs from taking on everyone's error."""
BLOCK = 64
"""Columns that are finished together; the result does not depend on it but for rounding."""


def compensated_codes(weight: Tensor, grid: Grid, second_moment: Tensor, noise: float = 0.0) -> Tensor:
    """Codes (whole numbers in float32) for weight [out, in] on a grid whose scale and zero broadcast to [out, in].

    second_moment [in, in] is that of the inputs; `noise` is the variance that rounding adds to each of them. Where the
    matrix cannot be factored, the nearest codes come back.
    """
    order = torch.argsort(second_moment.diagonal(), descending=True, stable=True)
    factor = _inverse_factor(second_moment[order][:, order], noise)
    if factor is None:
        return grid.codes(weight)
    rest = weight.T[order].contiguous()  # [in, out], so that an input is one row
    scale = grid.scale.expand_as(weight).T[order].contiguous()
    zero = grid.zero.expand_as(weight).T[order].contiguous()
    codes = torch.empty_like(rest)
    for start in range(0, len(rest), BLOCK):
        stop = min(start + BLOCK, len(rest))
        local, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        upper = factor[start:stop, start:stop]
        for row in range(stop - start):
            index = start + row
            code = (torch.round(local[row] / scale[index]) + zero[index]).clamp_(grid.low, grid.high)
            codes[index] = code
            errors[row] = (local[row] - (code - zero[index]) * scale[index]) / upper[row, row]
            local[row + 1 :] -= torch.outer(upper[row, row + 1 :], errors[row])
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.contiguous()


def _inverse_factor(second_moment: Tensor, noise: float) -> Tensor | None:
    """The upper Cholesky factor of the inverse of the damped second moment; None where there is none."""
    mean = second_moment.diagonal().mean()
    if not torch.isfinite(mean) or mean <= 0:
        return None
    damped = second_moment.clone()
    damped.diagonal().add_(DAMPING * mean + noise)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed.item():
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed.item() or not bool(torch.isfinite(upper).all()) else upper
