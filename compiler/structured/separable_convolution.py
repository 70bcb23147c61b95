"""A convolution as two thin ones, the kernel's dims shared out between them.

    W[o, i, a, b] ~ sum over r of second[o, r, b] * first[r, i, a]

where a are the kernel's dims of the first convolution, b those of the second, and r is the rank. Any dims may be a,
none and all of them too: with none the first mixes channels at a place, with all the second does. An error counts by
how far it moves what the layer gives: the moment E[p p^T] of the patches p that the kernel sees weighs it. The first
factors are those of the weighed singular value decomposition, with the moment averaged over b; the second ones then the
best there are, by least squares.

Source: Jaderberg et al. 2014, arXiv:1405.3866, section 2.2 (kernels of one row and of one column, by what they give);
Zhang et al. 2015, arXiv:1505.06798, section 3.1 (all dims in the first, by the responses).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from compiler.structured.weighing import Weighing

FACTOR = re.compile(r"(^|\.)(first|second)_kernel\.weight$")
"""Names of factors, as they stand in a graph."""
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class KernelSplit:
    """Which dims of a kernel the first convolution has. `kernel` and `stride` have a number a dim."""

    out_channels: int
    in_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    first: tuple[int, ...]

    @property
    def second(self) -> tuple[int, ...]:
        """The other dims."""
        return tuple(dim for dim in range(len(self.kernel)) if dim not in self.first)

    @property
    def columns(self) -> int:
        """Numbers of the first factor for each rank."""
        return self.in_channels * math.prod(self.kernel[dim] for dim in self.first)

    @property
    def rows(self) -> int:
        """Numbers of the second factor for each rank."""
        return self.out_channels * math.prod(self.kernel[dim] for dim in self.second)

    @property
    def dense_count(self) -> int:
        """Numbers of the weight."""
        return self.out_channels * self.in_channels * math.prod(self.kernel)

    def rank_at(self, ratio: float) -> int:
        """The most that has `ratio` of the weight's numbers, and of its multiplications, at most.

        Along dims that are not its own the first convolution runs at every place, which the second may stride over.
        """
        places = math.prod(self.stride[dim] for dim in self.second)
        room = ratio * self.dense_count / (self.columns * places + self.rows)
        return min(int(room + 1e-9), self.columns, self.rows)

    def order(self) -> tuple[int, ...]:
        """Of the weight's dims: outputs, then the second's dims, inputs, then the first's."""
        return (0, *(2 + dim for dim in self.second), 1, *(2 + dim for dim in self.first))

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight [out, in, *kernel] as [out * second dims, in * first dims]."""
        return weight.permute(self.order()).reshape(self.rows, self.columns)


def kernel_splits(
    out_channels: int, in_channels: int, kernel: Sequence[int], stride: Sequence[int]
) -> Iterator[KernelSplit]:
    """All ways to share out the dims; those along which the kernel has one number and no stride go to the second."""
    wide = [dim for dim, size in enumerate(kernel) if size > 1 or stride[dim] > 1]
    for count in range(len(wide) + 1):
        for first in combinations(wide, count):
            yield KernelSplit(out_channels, in_channels, tuple(kernel), tuple(stride), first)


@dataclass(frozen=True)
class SplitFactors:
    """first [rank, in, *first dims], second [out, *second dims, rank], both in float64, and the part that is lost."""

    split: KernelSplit
    first: Tensor
    second: Tensor
    lost: float


def nearest_factors(weight: Tensor, split: KernelSplit, rank: int, moment: Tensor | None) -> SplitFactors:
    """For a weight [out, in, *kernel]; `moment` [in * kernel, in * kernel] is that of patches, positive definite, or
    None where all errors count alike.
    """
    weight = weight.double()
    sizes = [split.in_channels, *(split.kernel[dim] for dim in split.first)]
    matrix = split.matrix(weight)
    if moment is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        factor = left[:, :rank] * values[:rank]
        lost = float(values[rank:].square().sum() / values.square().sum().clamp(min=1e-300))
        return _balanced(split, right[:rank], factor, sizes, lost)
    moment = moment.double()
    root = torch.linalg.cholesky(_moment_of_first(moment, split))  # L L^T
    right = torch.linalg.svd(matrix @ root, full_matrices=False)[2][:rank]
    first = torch.linalg.solve_triangular(root, right, upper=False, left=False)  # [rank, in * first dims]
    through = _through_first(first, split, len(moment))  # [second dims * rank, in * kernel]
    flat = weight.flatten(1)
    moved = through @ moment
    second = torch.linalg.lstsq(moved @ through.T, moved @ flat.T).solution  # [second dims * rank, out]
    places = math.prod(split.kernel[dim] for dim in split.second)
    factor = second.reshape(places, rank, -1).permute(2, 0, 1).reshape(split.rows, rank)
    lost = Weighing(moment=moment).part_lost(flat, second.T @ through)
    return _balanced(split, first, factor, sizes, lost)


def _moment_of_first(moment: Tensor, split: KernelSplit) -> Tensor:
    """[in * first dims, in * first dims]: of what the first convolution sees, averaged over the second's dims."""
    count = len(split.kernel)
    sizes = [split.in_channels, *split.kernel]
    own = [0, *(1 + dim for dim in split.first)]
    others = [1 + dim for dim in split.second]
    both = moment.reshape(*sizes, *sizes).permute(
        *own, *(1 + count + dim for dim in own), *others, *(1 + count + dim for dim in others)
    )
    places = math.prod(split.kernel[dim] for dim in split.second)
    both = both.reshape(split.columns, split.columns, places, places)
    return both.diagonal(dim1=2, dim2=3).mean(-1)


def _through_first(first: Tensor, split: KernelSplit, width: int) -> Tensor:
    """[second dims * rank, in * kernel]: what each number that the second convolution reads takes of a patch."""
    rank = len(first)
    places = math.prod(split.kernel[dim] for dim in split.second)
    spread = torch.eye(places, dtype=first.dtype)[:, None, :, None] * first[None, :, None, :]
    # [places, rank, places, in * first dims], the last two in the order of `matrix`
    shape = [
        *(split.kernel[dim] for dim in split.second),
        split.in_channels,
        *(split.kernel[dim] for dim in split.first),
    ]
    order = [dim - 1 for dim in split.order()[1:]]
    back = [1 + order.index(dim) for dim in range(len(order))]
    return spread.reshape(places * rank, *shape).permute(0, *back).reshape(places * rank, width)


def _balanced(split: KernelSplit, first: Tensor, factor: Tensor, sizes: list[int], lost: float) -> SplitFactors:
    """Rows of `first` [rank, ...] and columns of `factor` [rows, rank] of one norm each."""
    norms = first.norm(dim=1).clamp(min=1e-30), factor.norm(dim=0).clamp(min=1e-30)
    by = (norms[1] / norms[0]).sqrt()
    second_sizes = [split.out_channels, *(split.kernel[dim] for dim in split.second), len(first)]
    return SplitFactors(split, (first * by[:, None]).reshape(-1, *sizes), (factor / by).reshape(second_sizes), lost)


class SeparableConvolution(nn.Module):
    """The second of two convolutions after the first; x [batch, in, *spatial] to [batch, out, *spatial]."""

    def __init__(
        self,
        factors: SplitFactors,
        bias: Tensor | None,
        padding: Sequence[int] | str,
        dilation: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        split = factors.split
        rank, dims = len(factors.first), len(split.kernel)
        kind: Any = CONVOLUTIONS[dims]

        def convolution(own: tuple[int, ...], channels: tuple[int, int], biased: bool) -> Any:
            def along(numbers: Sequence[int], other: int) -> tuple[int, ...]:
                return tuple(numbers[dim] if dim in own else other for dim in range(dims))

            around = padding if isinstance(padding, str) else along(padding, 0)
            return kind(
                *channels,
                along(split.kernel, 1),
                along(split.stride, 1),
                around,
                along(dilation, 1),
                bias=biased,
                dtype=dtype,
            )

        self.first_kernel = convolution(split.first, (split.in_channels, rank), False)
        self.second_kernel = convolution(split.second, (rank, split.out_channels), bias is not None)
        with torch.no_grad():
            self.first_kernel.weight.copy_(factors.first.reshape(self.first_kernel.weight.shape))
            second = factors.second.movedim(-1, 1)  # [out, rank, *second dims]
            self.second_kernel.weight.copy_(second.reshape(self.second_kernel.weight.shape))
            if bias is not None:
                self.second_kernel.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second_kernel(self.first_kernel(x))
        return y
