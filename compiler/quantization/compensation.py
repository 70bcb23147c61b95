"""Rounding a weight column by column, each later column making up for the error so far (GPTQ).

For y = x @ w with inputs of second moment H = E[x^T x], rounding the weights of input i changes y by an error that
the weights of later inputs can partly undo; the best correction follows from the Cholesky factor of H^-1.

Once the codes are chosen, the scales of blocks are fitted anew to the same error, which is quadratic in them.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1, with columns in order of decreasing H_ii ("act-order").
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compiler.quantization.scales import Grid

LARGEST_DAMPING, SMALLEST_DAMPING = 0.5, 0.005
DAMPING_BY_ROWS = 0.2
"""Added to the diagonal of H, as a part of its mean and by features over rows: what few rows say of H is mostly noise.

The paper's 0.01 suits thousands of rows. With the 64 sentences that ship, 0.5 left less error on other text: the cosine
of all-MiniLM-L6-v2 with only its weights rounded was 0.99940 against 0.99876.
"""
ROWS_AT_ONCE = 512
"""Outputs whose scales are solved for together: bounds the memory for systems of [blocks, blocks] an output."""
RIDGE = 1e-6
"""Added to the diagonal of each such system, as a part of its mean."""
BLOCK = 32
"""Inputs that are finished together. It decides the speed only: blocks so small stay in one thread's cache."""


def damped(second_moment: Tensor, row_count: int, noise: float = 0.0) -> Tensor:
    """H to compensate with: second_moment [in, in] of `row_count` rows of inputs with a firm diagonal.

    `noise` is the variance that rounding adds to each input.
    """
    part = min(max(DAMPING_BY_ROWS * len(second_moment) / max(row_count, 1), SMALLEST_DAMPING), LARGEST_DAMPING)
    firm = second_moment.clone()
    firm.diagonal().add_(part * second_moment.diagonal().mean() + noise)
    return firm


def compensated_codes(weight: Tensor, grid: Grid, firm: Tensor) -> Tensor:
    """Codes (whole numbers in float32) for weight [out, in] on a grid whose scale and zero broadcast to [out, in].

    `firm` [in, in] is the damped second moment of the inputs. Where it cannot be factored, the nearest codes come back.
    """
    return Compensation(firm).codes(weight, grid)


class Compensation:
    """What rounding one input says of the inputs after it: the same for every output, so that outputs can be rounded
    some at a time.
    """

    def __init__(self, firm: Tensor) -> None:
        """`firm` [in, in] is the damped second moment of the inputs."""
        self._order = torch.argsort(firm.diagonal(), descending=True, stable=True)
        self._factor = inverse_factor(firm[self._order][:, self._order])

    def codes(self, weight: Tensor, grid: Grid) -> Tensor:
        """As `compensated_codes` gives them."""
        order, factor = self._order, self._factor
        if factor is None:
            return grid.codes(weight)
        rest = weight.T[order].contiguous()  # [in, out], so that an input is one row
        scale = grid.scale.expand_as(weight).T[order].contiguous()
        zero = grid.zero.expand_as(weight).T[order].contiguous()
        codes = torch.empty_like(rest)
        inverse_diagonal = factor.diagonal().reciprocal().tolist()
        for start in range(0, len(rest), BLOCK):
            stop = min(start + BLOCK, len(rest))
            errors = torch.empty_like(rest[start:stop])
            for index in range(start, stop):
                row, error, step, offset = rest[index], errors[index - start], scale[index], zero[index]
                codes[index] = code = grid.nearest(row / step, offset)
                torch.sub(row, grid.steps(code, offset).mul_(step), out=error).mul_(inverse_diagonal[index])
                rest[index + 1 : stop].addr_(factor[index, index + 1 : stop], error, alpha=-1)
            rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        result = torch.empty_like(codes)
        result[order] = codes
        return result.T.contiguous()


def refitted_scales(weight: Tensor, grid: Grid, codes: Tensor, firm: Tensor) -> Tensor:
    """The scales [out, blocks, 1] that leave the least error of the outputs with these codes [out, blocks, size].

    weight is [out, blocks * size], `firm` as above. With v_b the steps of block b, the scales s of an output solve
    sum_c (v_b H_bc v_c) s_c = v_b H_b w. Where that has no solution, the old scales stay.
    """
    parts = range(0, len(weight), ROWS_AT_ONCE)
    fitted = [
        _fitted(weight[at : at + ROWS_AT_ONCE], _rows(grid, at), codes[at : at + ROWS_AT_ONCE], firm) for at in parts
    ]
    return torch.cat(fitted)


def _fitted(weight: Tensor, grid: Grid, codes: Tensor, firm: Tensor) -> Tensor:
    unit = grid.steps(codes, grid.zero)  # [out, blocks, size]
    outputs, blocks, size = unit.shape
    system = unit.new_empty(outputs, blocks, blocks)
    for block, rows in enumerate(torch.split(firm, size)):
        products = (unit[:, block] @ rows).reshape(unit.shape)
        system[:, block] = products.mul_(unit).sum(-1)
    wanted = (weight @ firm).reshape(unit.shape).mul_(unit).sum(-1, keepdim=True)
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal.add_(RIDGE * diagonal.mean(-1, keepdim=True)).clamp_(min=torch.finfo(torch.float32).tiny)
    lower, failed = torch.linalg.cholesky_ex(system)
    fitted = torch.cholesky_solve(wanted, lower)
    usable = (failed == 0)[:, None, None] & torch.isfinite(fitted) & (unit != 0).any(-1, keepdim=True)
    return torch.where(usable, fitted, grid.scale)


def _rows(grid: Grid, start: int) -> Grid:
    part = slice(start, start + ROWS_AT_ONCE)
    return replace(grid, scale=grid.scale[part], zero=grid.zero[part])


def inverse_factor(firm: Tensor) -> Tensor | None:
    """The upper Cholesky factor U of the inverse, firm^-1 = U^T U; None where there is none."""
    mean = firm.diagonal().mean()
    if not torch.isfinite(mean) or mean <= 0:
        return None
    lower, failed = torch.linalg.cholesky_ex(firm)
    if failed.item():
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed.item() or not bool(torch.isfinite(upper).all()) else upper
