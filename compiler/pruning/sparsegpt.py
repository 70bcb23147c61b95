"""Zeros column by column, each later column making up for the error so far (SparseGPT).

With U the upper Cholesky factor of H^-1 (the same that rounding is compensated with), w_j costs w_j^2 / U_jj^2 to take
out, and the weights after it move by -w_j / U_jj * U_j,j+1:. Which weights go is decided BLOCK columns at a time by
what they have become by then; in a pattern of n of m, at the first column of each group.

Source: Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1, with blocks of columns for the mask of 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.pruning.masks import Pattern, pattern_mask
from compiler.quantization.compensation import inverse_factor

BLOCK = 128


def sparsegpt(weight: Tensor, firm: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor] | None:
    """The weight [out, in] with zeros, and where it has none; `firm` [in, in] is the damped moment of the inputs.

    None where that cannot be factored.
    """
    factor = inverse_factor(firm)
    if factor is None:
        return None
    rest = weight.T.clone(memory_format=torch.contiguous_format)  # [in, out], so that an input is one row
    stays = torch.ones_like(rest, dtype=torch.bool)
    diagonal = factor.diagonal()
    step = pattern.group or BLOCK
    block = -(-BLOCK // step) * step
    for start in range(0, len(rest), block):
        stop = min(start + block, len(rest))
        errors = torch.empty_like(rest[start:stop])
        for index in range(start, stop):
            if (index - start) % step == 0:
                end = min(index + step, stop)
                scores = (rest[index:end] / diagonal[index:end, None]).square()
                stays[index:end] = pattern_mask(scores.T, pattern, "layer").T
            row, error = rest[index], errors[index - start]
            torch.div(row * ~stays[index], diagonal[index], out=error)
            row.mul_(stays[index])
            rest[index + 1 : stop].addr_(factor[index, index + 1 : stop], error, alpha=-1)
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return rest.T.contiguous(), stays.T.contiguous()
