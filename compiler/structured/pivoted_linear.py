"""The module that stands in for a linear layer whose weight is of a low rank, in the fewest numbers that this takes.

    W [out, in] of a rank below both: `rank` of its columns, the pivots, make all others,  W[:, others] = W[:, pivots] T

    at least as many outputs as inputs    y = W[:, pivots] (x[pivots] + T x[others])
    fewer outputs than inputs             y[pivots] = W[pivots] x,  y[others] = T^T y[pivots]      the same of W^T

Two thin factors have rank (in + out) numbers, this has rank (in + out - rank): at 90 % of the numbers of a weight of
576 x 1536 a rank of 491 and not of 377. The narrower side has the pivots: fewer numbers change their places. Pivots are
those of a QR decomposition with column pivoting, which keeps the numbers of T small.

Source: Zhao et al. 2025, arXiv:2501.19090, section 3 (PIFA); Liberty et al. 2007, Randomized algorithms for the
low-rank approximation of matrices (interpolative decomposition).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compiler.structured.modules import FactoredLinear
from compiler.structured.projection import Factors


class PivotedLinear(FactoredLinear):
    """A linear layer of a low rank by pivots.

    Pivots among inputs: first_factor[0] is T [rank, in - rank], second_factor[0] the pivots' columns [out, rank]. Among
    outputs: first_factor[0] is the pivots' rows [rank, in], second_factor[0] T^T [out - rank, rank]. `order` [in], or
    [out], says which places come first where x is taken apart, or where y is taken from.
    """

    order: Tensor

    def __init__(self, factors: Factors, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Raises ValueError for factors of several blocks, or of a full rank."""
        structure = factors.structure
        out_features, in_features = sum(structure.out_sizes), sum(structure.in_sizes)
        if len(factors.up) != 1 or len(factors.down) != 1 or len(factors.down[0]) != 1:
            raise ValueError("pivots are those of one block")
        if structure.rank >= min(out_features, in_features):
            raise ValueError(
                f"a weight of {out_features} x {in_features} of rank {structure.rank} has no other columns"
            )
        up, down = factors.up[0][0], factors.down[0][0]
        among_inputs = in_features <= out_features
        order, rest = _interpolated(down if among_inputs else up.mT)
        pivots = order[: structure.rank]
        first, second = (rest, up @ down[:, pivots]) if among_inputs else (up[pivots] @ down, rest.mT)
        super().__init__([first], [second], [] if bias is None else [bias], dtype)
        self.structure, self.among_inputs = structure, among_inputs
        self.register_buffer("order", order if among_inputs else order.argsort())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        (first,), (second,) = self.factors()
        bias = self.biases[0] if self.biases else None
        rank = self.structure.rank
        if self.among_inputs:
            turned = x.index_select(-1, self.order)
            return functional.linear(turned[..., :rank] + functional.linear(turned[..., rank:], first), second, bias)
        pivots = functional.linear(x, first)
        y = torch.cat([pivots, functional.linear(pivots, second)], -1).index_select(-1, self.order)
        return y if bias is None else y + bias


def _interpolated(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """For matrix [rank, columns]: columns in an order, pivots first, and what makes the others of them."""
    from scipy.linalg import qr

    matrix = matrix.detach().double()
    _, places = qr(matrix.numpy(), mode="r", pivoting=True)
    order = torch.from_numpy(places).long()
    pivots, others = matrix[:, order[: len(matrix)]], matrix[:, order[len(matrix) :]]
    return order, torch.linalg.lstsq(pivots, others, driver="gelsd").solution  # pivots of a lower rank too
