"""What a report says of limits that --max-drop undid."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compiler.budget.record import LimitRecord, MixRecord
from compiler.report.document import budget_notes
from compiler.rewriting import PassResult, SiteOutcome


def compiled(quantity: str, payload_bytes: int, *states: str) -> Any:
    """A compile under one limit of 100 bytes, seconds or FLOPs, and what became of its sites."""
    limit = LimitRecord(quantity, f"{quantity}=0.5", 200.0, 100.0, 99.0, 99.0)
    outcomes = tuple(SiteOutcome(f"site {index}", "linear", state) for index, state in enumerate(states))
    result = PassResult(outcomes=outcomes, mix=MixRecord((), (limit,)))
    return SimpleNamespace(records=(SimpleNamespace(result=result),), payload_bytes=payload_bytes)


@pytest.mark.parametrize(
    ("quantity", "payload_bytes", "states", "said"),
    [
        ("size", 120, ("grafted", "returned"), ["size=0.5 is not held: --max-drop gave back too much"]),
        ("size", 120, ("grafted",), ["size=0.5 is not held: what comes after it added to it"]),
        ("size", 100, ("grafted", "returned"), []),
        ("latency", 120, ("softened", "returned"), ["latency=0.5 was held before --max-drop gave back 2 sites"]),
        ("flops", 120, ("grafted",), []),
    ],
)
def test_a_limit_that_was_undone_is_told(
    quantity: str, payload_bytes: int, states: tuple[str, ...], said: list[str]
) -> None:
    notes = budget_notes(compiled(quantity, payload_bytes, *states))
    assert len(notes) == len(said)
    assert all(note.startswith(start) for note, start in zip(notes, said, strict=True))
