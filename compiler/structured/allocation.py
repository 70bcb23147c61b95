"""Ranks by site: as many numbers in all as one ratio for every site leaves, more of them where a weight needs more.

    uniform   every site keeps the same part of its numbers
    energy    every site keeps the same part of its squared singular values
    welore    every site keeps its singular values of at least a threshold, (s - least) / (largest - least) >= t

That part, or that threshold, is the one with the most numbers that `ratio` allows all sites together. Singular values
are those of the weight as its errors are weighed (weighing.py); of several blocks, the root mean square over blocks of
their first, second, ... values. A site whose factors would have as many numbers as its weight stays dense and counts as
such (in WeLore's words it is no low-rank component).

Source: Jaiswal et al. 2024, arXiv:2407.11239, section 3 (WeLore), where singular values are those of the plain weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compiler.structured.structure import Structure

Allocation = Literal["uniform", "energy", "welore"]
ALLOCATION_HELP = (
    "how the numbers that ratio leaves are shared out: uniform, the same part of every weight; energy, the same part "
    "of what the method counts by; welore, singular values above one threshold"
)


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a site, largest first, and the structure that its weight becomes, of whatever rank."""

    values: Tensor
    structure: Structure

    @property
    def dense_count(self) -> int:
        """Numbers in the weight."""
        return self.structure.dense_count


def allocated_ranks(spectra: Sequence[Spectrum], ratio: float, allocation: Allocation) -> list[int]:
    """The rank of each site, at least 1: all together have `ratio` of their numbers at most, dense ones included."""
    entries = [_entries(one, allocation) for one in spectra]
    growth = [_growth(one) for one in spectra]
    sites = torch.cat([torch.full((len(one),), index) for index, one in enumerate(entries)])
    order = torch.cat(entries).argsort(stable=True)
    numbers = torch.cat(growth)[order].cumsum(0)
    taken = order[numbers <= ratio * sum(one.dense_count for one in spectra) + 1e-9]
    ranks: list[int] = sites[taken].bincount(minlength=len(spectra)).clamp(min=1).tolist()
    return ranks


def _entries(spectrum: Spectrum, allocation: Allocation) -> Tensor:
    """For each singular value, how far what all sites keep has to grow until it is among them; none before another."""
    values = spectrum.values.double()
    if allocation == "uniform":
        return _growth(spectrum).cumsum(0) / spectrum.dense_count
    if allocation == "energy":
        power = values.square()
        return (power.cumsum(0) - power) / power.sum().clamp(min=1e-300)
    least, largest = values[-1], values[0]
    return 1 - (values - least) / (largest - least).clamp(min=1e-300)


def _growth(spectrum: Spectrum) -> Tensor:
    """The numbers that each rank adds, up to those of the weight."""
    ranks = range(1, len(spectrum.values) + 1)
    counts = torch.tensor([spectrum.structure.count_at(rank) for rank in ranks], dtype=torch.float64)
    return counts.clamp(max=spectrum.dense_count).diff(prepend=torch.zeros(1, dtype=torch.float64))
