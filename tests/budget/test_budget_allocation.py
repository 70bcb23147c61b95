"""The integer program against brute force, and what it says where nothing keeps to the limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.budget.allocation import Offer, OutOfReachError, allocate


def drawn(parts: int, seed: int) -> list[Offer]:
    """Four offers a part, of which the first uses nothing, and two that cover two parts each."""
    generator = torch.Generator().manual_seed(seed)

    def offer(*covers: int) -> Offer:
        cost, *uses = torch.rand(3, generator=generator).tolist()
        return Offer(covers, cost * 10.0 ** (-6 * uses[0]), (uses[0], uses[1]))

    offers = [one for part in range(parts) for one in (Offer((part,), 9.0, (0.0, 0.0)), offer(part))]
    offers += [offer(part) for part in range(parts) for _ in range(2)]
    return offers + [offer(part, (part + 1) % parts) for part in range(2) if parts > 1]


def brute_force(offers: Sequence[Offer], parts: int, limits: Sequence[float]) -> float:
    """The least cost over all exact covers within the limits; infinite where there is none."""
    least = math.inf
    for count in range(1, parts + 1):
        for chosen in itertools.combinations(offers, count):
            covered = sorted(part for one in chosen for part in one.covers)
            used = [sum(one.uses[index] for one in chosen) for index in range(len(limits))]
            if covered == list(range(parts)) and all(u <= limit for u, limit in zip(used, limits, strict=True)):
                least = min(least, sum(one.cost for one in chosen))
    return least


@settings(max_examples=40)
@given(parts=st.integers(1, 4), seed=st.integers(0, 999), first=st.floats(0.05, 3), second=st.floats(0.05, 3))
def test_no_choice_costs_less(parts: int, seed: int, first: float, second: float) -> None:
    offers = drawn(parts, seed)
    taken = [offers[index] for index in allocate(offers, parts, (first, second))]
    assert sorted(part for one in taken for part in one.covers) == list(range(parts))
    assert sum(one.uses[0] for one in taken) <= first * (1 + 1e-9)
    assert sum(one.uses[1] for one in taken) <= second * (1 + 1e-9)
    assert sum(one.cost for one in taken) == pytest.approx(brute_force(offers, parts, (first, second)), rel=1e-5)


def test_a_stand_in_for_two_parts_leaves_no_room_for_one_of_either() -> None:
    offers = [Offer((0,), 1.0, (4.0,)), Offer((1,), 1.0, (4.0,)), Offer((0, 1), 3.0, (5.0,)), Offer((0,), 5.0, (1.0,))]
    assert allocate(offers, 2, (8.0,)) == [0, 1]
    assert allocate(offers, 2, (7.0,)) == [2]
    assert allocate(offers, 2, (5.0,)) == [2]


def test_costs_that_differ_by_many_orders_are_told_apart() -> None:
    parts = [
        (Offer((i,), 1e6, (1.0,)), Offer((i,), 1e-9 * (i + 1), (2.0,)), Offer((i,), 0.0, (3.0,))) for i in range(8)
    ]
    offers = [one for part in parts for one in part]
    taken = allocate(offers, 8, (19.0,))
    assert taken == [3 * i + (2 if i >= 5 else 1) for i in range(8)], "the dearest three get the most"


def test_what_can_be_reached_is_said_for_each_limit() -> None:
    offers = [Offer((0,), 0.0, (4.0, 1.0)), Offer((0,), 1.0, (2.0, 3.0)), Offer((1,), 0.0, (1.0, 1.0))]
    with pytest.raises(OutOfReachError) as caught:
        allocate(offers, 2, (2.5, 4.0))
    assert caught.value.least[0] == pytest.approx(3.0)
    assert caught.value.least[1] is None


def test_costs_that_are_not_finite_are_never_taken() -> None:
    offers = [Offer((0,), math.inf, (0.0,)), Offer((0,), math.nan, (0.0,)), Offer((0,), 2.0, (1.0,))]
    assert allocate(offers, 1, (5.0,)) == [2]
    with pytest.raises(ValueError, match="1 parts have no offer"):
        allocate(offers[:2], 1, (5.0,))


def test_two_hundred_sites_of_twelve_candidates_are_solved() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(200, generator=generator).mul(1e6).add(1e5).tolist()
    offers = []
    for part, size in enumerate(sizes):
        noise = torch.rand(12, generator=generator).tolist()
        for step in range(12):
            share = 1.0 - step / 12
            offers.append(Offer((part,), noise[step] * 4.0 ** (step - 12), (size * share * (0.9 + 0.2 * noise[step]),)))
    limit = 0.3 * sum(sizes)
    taken = allocate(offers, 200, (limit,))
    assert len(taken) == 200
    assert 0.999 * limit < sum(offers[index].uses[0] for index in taken) <= limit * (1 + 1e-9)


def test_nothing_to_fill_takes_nothing() -> None:
    assert allocate([], 0, (1.0,)) == []
