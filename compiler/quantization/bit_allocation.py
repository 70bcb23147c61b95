"""Which site gets how many bits, so that they are few on average and cost least: a knapsack with a choice for each.

The cost of a site at some bits is what it is expected to add to the divergence of the outputs; costs of sites add up.
Source: Dong et al. 2020, arXiv:1911.03852, section 3 (costs from second derivatives); Kellerer et al. 2004, Knapsack
Problems, section 11.5 (the multiple-choice knapsack by dynamic programming).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

MOST_UNITS = 20_000
"""Units in which bits are counted at most: with sizes that have a large common divisor the solution is exact."""


def allocate_bits(sizes: Sequence[int], costs: Sequence[Mapping[int, float]], average: float) -> list[int]:
    """The bits of each site, of sizes[i] weights and cost costs[i][bits], with at most `average` bits a weight.

    Raises ValueError where even the fewest bits are more.
    """
    limit = math.floor(average * sum(sizes))
    unit = max(math.gcd(*(size * bits for size, cost in zip(sizes, costs, strict=True) for bits in cost)), 1)
    unit = max(unit, -(-limit // MOST_UNITS))
    capacity = limit // unit
    least = np.zeros(capacity + 1)  # least[c]: the least cost of the sites so far within c units
    choices = []
    for size, cost in zip(sizes, costs, strict=True):
        options = sorted(cost)
        table = np.full((len(options), capacity + 1), np.inf)
        for row, bits in enumerate(options):
            taken = -(-size * bits // unit)
            if taken <= capacity:
                table[row, taken:] = least[: capacity + 1 - taken] + cost[bits]
        chosen = table.argmin(0)
        choices.append((options, chosen))
        least = table[chosen, np.arange(capacity + 1)]
    if not np.isfinite(least[capacity]):
        fewest = sum(size * min(cost) for size, cost in zip(sizes, costs, strict=True)) / sum(sizes)
        raise ValueError(f"an average of {average:g} bits is below the {fewest:g} of the fewest")
    result = []
    for size, (options, chosen) in zip(reversed(sizes), reversed(choices), strict=True):
        bits = options[int(chosen[capacity])]
        capacity -= -(-size * bits // unit)
        result.append(bits)
    return result[::-1]
