"""The Fisher information of linear weights on calibration data, as its sums by row and by column.

For a sample with inputs x [tokens, in] and gradients g [tokens, out] of -log p(y), the gradient of the weight is
G = g^T x, and F = E[G**2] over samples, labels y drawn from the model itself. A language model's sample is one window.

Source: Hsu et al. 2022, arXiv:2207.00112, eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compiler.quantization.sensitivity import backward_passes
from compiler.structured.weighing import Weighing

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program
    from compiler.sites import Site


@dataclass
class FisherSums:
    """by_row [out] and by_column [in]: sums of F over the other dim, over so many samples."""

    by_row: Tensor
    by_column: Tensor

    def weighing(self) -> Weighing:
        """F as the product of its means by row and by column, over its mean."""
        count = len(self.by_column)
        total = float(self.by_row.sum())
        columns = self.by_column * count / max(total, 1e-300)  # 1 on average
        return Weighing(self.by_row / count, torch.diag(columns))

    def rows(self) -> Tensor:
        """[out]: how much each output counts, 1 on average."""
        return self.by_row / self.by_row.mean().clamp(min=1e-300)


def fisher_sums(program: Program, sites: Sequence[Site], data: Dataset, seed: int = 0) -> dict[fx.Node, FisherSums]:
    """For the output of each linear site that gradients reach. Empty without calibration data."""
    found: dict[fx.Node, FisherSums] = {}
    inputs = {site.output: site.inputs[0] for site in sites}

    def add(node: fx.Node, x: Tensor, gradient: Tensor) -> None:
        by_sample = torch.einsum("sto,sti->soi", _samples(gradient), _samples(x)).double().square()
        by_row, by_column = by_sample.sum((0, 2)), by_sample.sum((0, 1))
        if node in found:
            by_row, by_column = by_row + found[node].by_row, by_column + found[node].by_column
        found[node] = FisherSums(by_row, by_column)

    backward_passes(program, inputs, data, seed, add)
    return found


def _samples(x: Tensor) -> Tensor:
    """x [samples, ..., features] as [samples, rows, features]; each row of a matrix is a sample."""
    x = x.detach().float()
    return x.flatten(1, -2) if x.dim() > 2 else x[:, None]
