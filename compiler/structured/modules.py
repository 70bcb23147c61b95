"""The module that stands in for a linear layer whose weight is a structure.

    by blocks   x -> split -> linear each -> join, deal out -> split -> linear each -> join
    batched     x -> blocks first -> one batched product -> deal out -> one batched product -> features last

By blocks, later passes see linear layers, and blocks need not be of one size. Batched is faster from 8 blocks on, where
a call of one token is mostly overhead of calls. Dealing out is one transposition of all numbers between the factors:
slices joined for every block of outputs took several times as long with many blocks (benchmarks/structured_layers.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.structured.projection import Factors
from compiler.structured.structure import Structure

FACTOR = re.compile(r"(^|\.)(first|second)_factor\.\d+$")
"""Names of the stored factors: a linear layer that reads one is part of a structure already."""
LEARNING_SIZE = 0.25
"""Root mean square of the factors while they learn: a step of training at a rate of 0.0001 moves them by 0.04 %."""
HEALING_RATE = 0.1
"""Part of healing's learning rates for factors, which nearly fit from the start."""
BATCHED_FROM = 8
"""Blocks of either side."""


class FactoredLinear(nn.Module):
    """A linear layer that stores two factors of its weight and biases, each a list of tensors.

    Between `learn` and `settle` factors are stored at a root mean square of LEARNING_SIZE, so that one step of training
    moves each by the same part.
    """

    def __init__(
        self, first: Sequence[Tensor], second: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.first_factor, self.second_factor = _parameters(first, dtype), _parameters(second, dtype)
        self.biases = _parameters(biases, dtype)
        self.units: tuple[tuple[float, ...], ...] = ()

    def learn(self) -> None:
        """Store the factors at the size that suits training."""
        self.units = tuple(
            tuple(max(float(one.detach().square().mean().sqrt()), 1e-12) / LEARNING_SIZE for one in part)
            for part in self._lists
        )
        self._scale([[1 / unit for unit in part] for part in self.units])

    def settle(self) -> None:
        """Store the factors as they are, and be as before."""
        if self.units:
            self._scale(self.units)
        self.units = ()

    def factors(self) -> list[list[Tensor]]:
        """Both factors as they are, however they are stored."""
        if not self.units:
            return [list(part) for part in self._lists]
        pairs = zip(self._lists, self.units, strict=True)
        return [[one * unit for one, unit in zip(part, units, strict=True)] for part, units in pairs]

    @property
    def _lists(self) -> tuple[nn.ParameterList, nn.ParameterList]:
        return self.first_factor, self.second_factor

    @torch.no_grad()
    def _scale(self, scales: Sequence[Sequence[float]]) -> None:
        for part, units in zip(self._lists, scales, strict=True):
            for one, unit in zip(part, units, strict=True):
                one.mul_(unit)


class StructuredLinear(FactoredLinear):
    """y = second (dealt out (first x)) + bias, both factors block-diagonal.

    By blocks first_factor[i] is [out_blocks * rank, in_i], second_factor[j] [out_j, in_blocks * rank], biases[j]
    [out_j]. Batched each list holds one tensor: first [in_blocks, in_i, out_blocks * rank], second [out_blocks,
    in_blocks * rank, out_j], bias [out].
    """

    def __init__(self, factors: Factors, bias: Tensor | None, dtype: torch.dtype, batched: bool | None = None) -> None:
        """`batched` None: where it is faster. Raises ValueError where it is True and blocks differ in size."""
        structure = factors.structure
        batched = wants_batches(structure) if batched is None else batched
        if batched and not has_even_blocks(structure):
            raise ValueError(f"blocks of sizes {structure.in_sizes} and {structure.out_sizes} differ")
        first, second = factors.first(), factors.second()
        biases = [] if bias is None else [bias[part] for part in structure.out_slices]
        if batched:
            first, second = ([torch.stack(part).mT] for part in (first, second))
            biases = [] if bias is None else [bias]
        super().__init__(first, second, biases, dtype)
        self.structure, self.batched = structure, batched

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        first, second = self.factors()
        if self.batched:
            return self._batched(x, first[0], second[0])
        parts = _split(x, self.structure.in_sizes)
        hidden = _joined([functional.linear(part, factor) for part, factor in zip(parts, first, strict=True)])
        parts = _split(self._dealt(hidden), [factor.shape[1] for factor in second])
        biases = self.biases or [None] * len(second)
        return _joined([functional.linear(*one) for one in zip(parts, second, biases, strict=True)])

    def _dealt(self, hidden: Tensor) -> Tensor:
        """[..., in_blocks * out_blocks * rank] in the order of outputs."""
        shape = len(self.structure.in_sizes), len(self.structure.out_sizes), self.structure.rank
        if min(shape[:2]) == 1:
            return hidden
        return torch.unflatten(hidden, -1, shape).transpose(-2, -3).flatten(-3)

    def _batched(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        in_blocks, out_blocks, rank = len(first), len(second), self.structure.rank
        blocks = x.reshape(-1, in_blocks, first.shape[1]).transpose(0, 1)  # [in_blocks, rows, in_i]
        hidden = torch.unflatten(torch.matmul(blocks, first), -1, (out_blocks, rank))
        dealt = hidden.permute(2, 1, 0, 3).flatten(-2)  # [out_blocks, rows, in_blocks * rank]
        y = torch.matmul(dealt, second).transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y + self.biases[0] if self.biases else y


def learn(module: nn.Module) -> None:
    """Let the structured layers in `module` store their factors as training wants them."""
    for layer in _layers(module):
        layer.learn()


def settle(module: nn.Module) -> None:
    """Let them be as they are used."""
    for layer in _layers(module):
        layer.settle()


def _layers(module: nn.Module) -> list[FactoredLinear]:
    return [part for part in module.modules() if isinstance(part, FactoredLinear)]


def wants_batches(structure: Structure) -> bool:
    """Whether one batched product a factor is faster than a product a block."""
    many = min(len(structure.in_sizes), len(structure.out_sizes)) >= BATCHED_FROM
    return many and has_even_blocks(structure)


def has_even_blocks(structure: Structure) -> bool:
    """Whether all blocks of either side have one size."""
    return len({*structure.in_sizes}) == len({*structure.out_sizes}) == 1


def _parameters(tensors: Sequence[Tensor], dtype: torch.dtype) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(one.detach().to(dtype).contiguous().clone()) for one in tensors])


def _split(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return (x,) if len(sizes) == 1 else torch.split(x, list(sizes), -1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)
