"""Which offer is taken for which part of a model: an integer program, solved by HiGHS through scipy.

    minimise     sum over offers of cost_i x_i,  x_i 0 or 1
    so that      every part is covered by one offer that is taken       (an offer may cover several parts)
                 sum over offers of use_ij x_i <= limit_j               for every limited quantity j

With one limit and offers of one part each this is the multiple-choice knapsack (Kellerer et al. 2004, Knapsack
Problems, chapter 11). Source of the solver: Huangfu and Hall 2018, Parallelizing the dual revised simplex method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

GAP = 1e-6
"""How far from the least cost a solution may be, in parts of it."""
SLACK = 1e-9
"""Of a limit: sums of floats."""
SAFETY = 2e-7
"""Parts of a limit that are left free where a solution, which is exact to HiGHS's tolerance, was over it."""


@dataclass(frozen=True)
class Offer:
    """One way to fill parts of a model, what it costs, and what it uses of each limited quantity."""

    covers: tuple[int, ...]
    cost: float
    uses: tuple[float, ...]


class OutOfReachError(ValueError):
    """No choice keeps to all limits. `least` is, for each, the least that can be reached while the others hold, or None
    where not even they can be held.
    """

    def __init__(self, least: Sequence[float | None]) -> None:
        super().__init__("no choice keeps to the limits")
        self.least = tuple(least)


def allocate(offers: Sequence[Offer], part_count: int, limits: Sequence[float]) -> list[int]:
    """Positions of the offers to take, in order: those of least cost in all that keep to `limits`.

    Offers of a cost that is not finite are never taken. Raises OutOfReachError where nothing keeps to the limits, and
    ValueError where a part has no offer.
    """
    usable = [index for index, offer in enumerate(offers) if math.isfinite(offer.cost)]
    covered = {part for index in usable for part in offers[index].covers}
    if len(covered) < part_count:
        raise ValueError(f"{part_count - len(covered)} parts have no offer")
    if not part_count:
        return []
    program = _IntegerProgram([offers[index] for index in usable], part_count, limits)
    costs = np.array([offers[index].cost for index in usable])
    taken = program.solved(costs)
    if taken is None:
        raise OutOfReachError([program.least(quantity) for quantity in range(len(limits))])
    # What costs more than a whole solution is in no better one. Without it, the rest is told apart to full precision.
    affordable = costs <= costs[taken].sum() * (1 + GAP)
    refined = program.solved(costs, affordable)
    if refined is not None and costs[refined].sum() < costs[taken].sum():
        taken = refined
    return [usable[position] for position in np.flatnonzero(taken)]


class _IntegerProgram:
    """Covers and limits of some offers, for several objectives."""

    def __init__(self, offers: Sequence[Offer], part_count: int, limits: Sequence[float]) -> None:
        from scipy import sparse

        rows = [part for offer in offers for part in offer.covers]
        columns = [index for index, offer in enumerate(offers) for _ in offer.covers]
        self._covers = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(part_count, len(offers)))
        self._uses = np.array([offer.uses for offer in offers], dtype=float).reshape(len(offers), len(limits)).T
        self._limits = np.array(limits, dtype=float)
        self._count = len(offers)

    def solved(self, costs: Any, allowed: Any = None) -> Any:
        """Which offers are taken, as booleans, at least cost within the limits; None where nothing keeps to them."""
        return self._within(costs, self._limits, allowed)

    def least(self, quantity: int) -> float | None:
        """The least of one quantity while the others keep to their limits."""
        limits = self._limits.copy()
        limits[quantity] = math.inf
        taken = self._within(self._uses[quantity], limits, None)
        return None if taken is None else float(self._uses[quantity][taken].sum())

    def _within(self, costs: Any, limits: Any, allowed: Any) -> Any:
        room = limits
        for _ in range(3):
            taken = self._run(costs, room, allowed)
            if taken is None or (self._uses @ taken <= limits + SLACK * np.abs(limits)).all():
                return taken
            room = room - SAFETY * np.abs(room)
        return None

    def _run(self, costs: Any, limits: Any, allowed: Any) -> Any:
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [LinearConstraint(self._covers, 1, 1)]
        bounded = np.isfinite(limits)
        if bounded.any():
            scale = np.maximum(np.abs(limits[bounded]), 1e-300)[:, None]
            constraints.append(LinearConstraint(self._uses[bounded] / scale, -np.inf, limits[bounded] / scale[:, 0]))
        upper = np.ones(self._count) if allowed is None else allowed.astype(float)
        largest = float(np.abs(costs * upper).max()) or 1.0
        found = milp(
            costs * upper / largest,
            integrality=np.ones(self._count),
            bounds=Bounds(0, upper),
            constraints=constraints,
            options={"mip_rel_gap": GAP},
        )
        return None if found.x is None else found.x > 0.5
