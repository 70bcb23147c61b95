"""What an error of a weight counts: by how far it moves what the layer gives, and how much the outputs mind.

    cost(e) = sum over outputs o of rows[o] * e_o moment e_o        for an error e [out, in]

    plain            rows 1, moment I: the sum of squares
    whitened         moment E[x x^T] of the inputs x: the squared error of what the layer gives
    fisher           rows and a diagonal moment from the Fisher information F [out, in] of the weight, as the product
                     of its means by row and by column
    whitened-fisher  the rows of fisher and the moment of whitened: to second order the divergence of the outputs, where
                     inputs and gradients are independent

Source: Wang et al. 2024, arXiv:2403.07378, section 3.1 (whitened: SVD-LLM); Hsu et al. 2022, arXiv:2207.00112, eq. 5
(Fisher, one side); Guo et al. 2023, arXiv:2311.12023, section 3.3 (both sides); Martens and Grosse 2015,
arXiv:1503.05671, section 3 (the product of both).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["plain", "whitened", "fisher", "whitened-fisher"]

LEAST_PART = 1e-6
"""Of the mean importance of rows: none counts less, so that all can be divided by it."""


@dataclass(frozen=True)
class Weighing:
    """rows [out] and moment [in, in]; None for ones and for the identity."""

    rows: Tensor | None = None
    moment: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether all errors count alike."""
        return self.rows is None and self.moment is None

    @property
    def row_roots(self) -> Tensor | None:
        """Square roots of the rows in float64, none of them zero."""
        if self.rows is None:
            return None
        rows = self.rows.double()
        return rows.clamp(min=max(LEAST_PART * float(rows.mean()), 1e-300)).sqrt()

    def cost(self, error: Tensor) -> float:
        """Of an error [out, in]."""
        error = error.double()
        moved = error if self.moment is None else error @ self.moment.double()
        by_row = (moved * error).sum(1)
        return float((by_row if self.rows is None else by_row * self.rows.double()).sum())

    def part_lost(self, weight: Tensor, found: Tensor) -> float:
        """The cost of `found` in the place of `weight`, as a part of that of nothing at all."""
        return self.cost(found.double() - weight.double()) / max(self.cost(weight), 1e-300)


def root_of(moment: Tensor) -> Tensor:
    """A matrix R with moment = R @ R.T: the Cholesky factor, or for a moment that has none, of its eigenvectors."""
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(moment)
    if failed.item():
        values, vectors = torch.linalg.eigh(moment)
        root = vectors * values.clamp(min=0).sqrt()
    return root
