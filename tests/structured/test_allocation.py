"""Ranks by site: each rule against plain loops over every threshold, and the numbers that all sites have together."""

from __future__ import annotations

import itertools

import pytest
import torch

from compiler.structured.allocation import Allocation, Spectrum, allocated_ranks
from compiler.structured.projection import weighed_singular_values
from compiler.structured.structure import Structure
from compiler.structured.weighing import Weighing

SHAPES = [(12, 9), (20, 8), (7, 7), (16, 30)]


def one_block(outputs: int, inputs: int, *, pivoted: bool = False) -> Structure:
    return Structure.of(outputs, inputs, 1, 1, 1, pivoted=pivoted)


def spectra(seed: int, *, pivoted: bool = False) -> list[Spectrum]:
    """Of weights whose singular values fall differently fast."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index, (outputs, inputs) in enumerate(SHAPES):
        count = min(outputs, inputs)
        decay = torch.arange(count, dtype=torch.float64) * (0.1 + 0.3 * index)
        values = ((0.2 + torch.rand(count, generator=generator, dtype=torch.float64)) * decay.neg().exp()).sort().values
        found.append(Spectrum(values.flip(0), one_block(outputs, inputs, pivoted=pivoted)))
    return found


def kept_ranks(values: list[float], allocation: Allocation, threshold: float) -> int:
    """What a rule keeps of one site at a threshold, said in its own words."""
    if allocation == "energy":
        kept, rank = 0.0, 0
        while kept < threshold * sum(value**2 for value in values) - 1e-15:
            kept += values[rank] ** 2
            rank += 1
        return rank
    least, largest = min(values), max(values)
    return sum((value - least) / (largest - least) >= threshold for value in values)


def thresholds(values: list[float], allocation: Allocation) -> list[float]:
    """Those at which what is kept of a site changes."""
    if allocation == "energy":
        power = sum(value**2 for value in values)
        return [sum(value**2 for value in values[: rank + 1]) / power for rank in range(len(values))]
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def total(ranks: list[int], sites: list[Spectrum]) -> int:
    """Numbers of all sites; one whose factors are no smaller than its weight is dense."""
    return sum(min(numbers(rank, site), site.dense_count) for rank, site in zip(ranks, sites, strict=True))


def numbers(rank: int, site: Spectrum) -> int:
    """Of both factors, as many as their shapes say; of pivots less the identity."""
    (outputs,), (inputs,) = site.structure.out_sizes, site.structure.in_sizes
    return outputs * rank + rank * inputs - (rank * rank if site.structure.pivoted else 0)


@pytest.mark.parametrize("allocation", ["energy", "welore"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("pivoted", [False, True])
def test_it_is_the_threshold_with_the_most_numbers_that_fit(
    allocation: Allocation, ratio: float, seed: int, pivoted: bool
) -> None:
    sites = spectra(seed, pivoted=pivoted)
    lists = [site.values.tolist() for site in sites]
    allowed = ratio * sum(site.dense_count for site in sites)
    shares = [share for one in lists for share in thresholds(one, allocation)]
    tried = [[max(1, kept_ranks(one, allocation, share)) for one in lists] for share in shares]
    fitting = [ranks for ranks in tried if total(ranks, sites) <= allowed]
    best = max(fitting, key=lambda ranks: total(ranks, sites))
    found = allocated_ranks(sites, ratio, allocation)
    enough = [next(rank for rank in itertools.count(1) if numbers(rank, one) >= one.dense_count) for one in sites]
    assert list(map(min, found, enough)) == list(map(min, best, enough))
    assert total(found, sites) <= allowed


def test_uniform_gives_every_site_its_part() -> None:
    sites = spectra(0)
    ranks = allocated_ranks(sites, 0.6, "uniform")
    for rank, site in zip(ranks, sites, strict=True):
        assert numbers(rank, site) < 0.62 * site.dense_count
        assert numbers(rank + 2, site) > 0.6 * site.dense_count


def test_singular_values_of_blocks_are_those_of_each_block() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 12, generator=generator, dtype=torch.float64)
    x = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    rows = torch.rand(10, generator=generator, dtype=torch.float64) + 0.5
    structure = Structure.of(10, 12, 2, 3, 1)
    found = weighed_singular_values(weight, Weighing(rows, x.T @ x), structure)
    powers = []
    for outputs, inputs in itertools.product(structure.out_slices, structure.in_slices):
        block = rows[outputs, None].sqrt() * weight[outputs, inputs]
        powers.append(torch.linalg.svdvals(block @ x[:, inputs].T).square())
    expected = [sum(float(one[index]) for one in powers) / len(powers) for index in range(4)]
    torch.testing.assert_close(found.square(), torch.tensor(expected, dtype=torch.float64))


def test_a_site_that_needs_all_its_directions_leaves_less_to_the_others() -> None:
    flat = Spectrum(torch.linspace(1.0, 0.9, 10, dtype=torch.float64), one_block(10, 10))
    steep = Spectrum(torch.logspace(0, -6, 10, dtype=torch.float64), one_block(10, 10))
    ranks = allocated_ranks([flat, steep], 0.6, "energy")
    assert ranks[0] > ranks[1]
    assert total(ranks, [flat, steep]) <= 120
