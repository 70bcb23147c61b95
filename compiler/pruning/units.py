"""Which units of a layer's input go, and the weights that make up for them: hidden neurons, channels, heads.

A unit is a run of `inner` columns of the weight W [out, units * inner] of the layer that reads it. With inputs of a
second moment H = E[x x^T], what the layer gives moves by E|W x - V x|^2 = tr((W - V) H (W - V)^T).

    magnitude        |what goes in| * |what goes out|: norms of the unit's weights on both sides, no data
    activations      tr(W_u H_uu W_u^T): how far the output moves when unit u alone goes
    reconstruction   tr(V_u (H^-1_uu)^-1 V_u^T): how far it moves when unit u goes next and all others make up for it;
                     units go a few at a time, the rest being fitted anew after each time

Refitted weights are the least-squares ones, V = W H_:K H_KK^-1 for the columns K that stay.

Source: Hassibi and Stork 1992, Second order derivatives for network pruning, eq. 5 (one weight); Kurtic et al. 2023,
arXiv:2302.04089 (ZipLM), eq. 3 and algorithm 1 (structures); Sun et al. 2023, arXiv:2306.11695 (Wanda), eq. 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Saliency = Literal["magnitude", "activations", "reconstruction"]

ROUNDS = 16
"""In which units go by reconstruction; with fewer units to go, one at a time."""


def columns_of(units: Tensor, inner: int) -> Tensor:
    """The columns of some units: [units * inner]."""
    return (units[:, None] * inner + torch.arange(inner)).flatten()


def unit_powers(weight: Tensor, inner: int) -> Tensor:
    """The sum of squares of each unit's columns: weight [out, units * inner] to [units]."""
    return weight.double().square().sum(0).reshape(-1, inner).sum(1)


def removal_errors(weight: Tensor, moment: Tensor, inner: int) -> Tensor:
    """What each unit costs when it alone goes and nothing makes up for it: [units]."""
    count = weight.shape[1] // inner
    parts = weight.double().reshape(len(weight), count, inner)
    blocks = _diagonal_blocks(moment.double(), inner)  # [units, inner, inner]
    return torch.einsum("oui,uij,ouj->u", parts, blocks, parts)


def refitted(weight: Tensor, firm: Tensor, units: Tensor, inner: int) -> Tensor:
    """The columns of these units, fitted to give what all gave: [out, units * inner] in float64."""
    columns = columns_of(units, inner)
    return weight.double() @ firm.double()[:, columns] @ _inverse(firm.double()[columns][:, columns])


def kept_by_score(scores: Tensor, count: int) -> Tensor:
    """The `count` units of the highest scores, ascending; of equals the first."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def kept_by_reconstruction(weight: Tensor, firm: Tensor, inner: int, count: int) -> Tensor:
    """The units that stay when those that the others make up for best go first: [count], ascending.

    Taking units g out of the inverse and of the fitted weights leaves those of the others, s:
    A_ss - A_sg A_gg^-1 A_gs of A = H^-1, and V_s - V_g A_gg^-1 A_gs.
    """
    lower, failed = torch.linalg.cholesky_ex(firm.double())
    if failed.item():
        return kept_by_score(removal_errors(weight, firm, inner), count)
    kept = torch.arange(weight.shape[1] // inner)
    at_once = max(1, (len(kept) - count) // ROUNDS)
    inverse, fitted = torch.cholesky_inverse(lower), weight.double()
    while len(kept) > count:
        parts = fitted.reshape(len(weight), len(kept), inner)
        lower = torch.linalg.cholesky(_diagonal_blocks(inverse, inner).contiguous())
        costs = torch.einsum("oui,uij,ouj->u", parts, torch.cholesky_inverse(lower), parts)
        stays = kept_by_score(costs, max(count, len(kept) - at_once))
        goes = torch.ones(len(kept), dtype=torch.bool).index_fill_(0, stays, value=False).nonzero().flatten()
        left, gone = columns_of(stays, inner), columns_of(goes, inner)
        share = torch.cholesky_solve(inverse[gone][:, left], torch.linalg.cholesky(inverse[gone][:, gone]))
        fitted = fitted[:, left] - fitted[:, gone] @ share
        inverse = inverse[left][:, left] - inverse[left][:, gone] @ share
        kept = kept[stays]
    return kept


def part_lost(weight: Tensor, left: Tensor, moment: Tensor, units: Tensor, inner: int) -> float:
    """The power of the error in what the layer gives, as a part of that of what it gave."""
    error = weight.double().clone()
    error[:, columns_of(units, inner)] -= left.double()
    moment = moment.double()
    power = float(((weight.double() @ moment) * weight.double()).sum())
    return float(((error @ moment) * error).sum()) / max(power, 1e-300)


def _inverse(matrix: Tensor) -> Tensor:
    """Of a symmetric positive definite matrix; the pseudo-inverse of one that is not."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.pinv(matrix, hermitian=True) if failed.item() else torch.cholesky_inverse(lower)


def _diagonal_blocks(matrix: Tensor, inner: int) -> Tensor:
    """[units * inner, units * inner] to [units, inner, inner]."""
    count = len(matrix) // inner
    return matrix.reshape(count, inner, count, inner).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
