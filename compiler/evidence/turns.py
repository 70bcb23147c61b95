"""Wall time of several things in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

ROUNDS = 5
FEWEST_ROUNDS = 3
LEAST_SECONDS = 0.004
"""A turn calls so often that it lasts this long: a clock and a scheduler say little of one short call."""
CERTAINLY_LONG = 10 * LEAST_SECONDS
"""A first call that takes this long leaves no need for another to say how often a turn has to call."""


def alternating_seconds(
    calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, longest_seconds: float = math.inf
) -> dict[str, list[float]]:
    """Wall seconds a call by name, one figure a round; in a round all take turns of LEAST_SECONDS or one call.

    After `longest_seconds` no round is begun, but for the first three.
    """
    begun = time.perf_counter()
    counts = {name: _calls_a_turn(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - begun > longest_seconds:
            break
        for name, call in calls.items():
            seconds[name].append(_seconds(call, counts[name]))
    return seconds


def _calls_a_turn(call: Callable[[], object]) -> int:
    """Warms up."""
    if _seconds(call, 1) >= CERTAINLY_LONG:
        return 1
    return max(1, int(LEAST_SECONDS / max(_seconds(call, 1), 1e-6)))


def _seconds(call: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count
