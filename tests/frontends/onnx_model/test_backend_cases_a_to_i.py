"""ONNX's own node cases, names a to i, through the importer and through the backend; the failures are those listed."""

from __future__ import annotations

import pytest
from backend_cases import cases
from known_failures import differences, known_failures

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("letter", "abcdefghi")
def test_what_fails_is_what_is_listed(letter: str) -> None:
    assert differences("node", lambda name: name.startswith(f"test_{letter}")) == []


def test_the_shares_that_pass() -> None:
    total, known = len(cases("node")), known_failures()
    assert total >= 1351
    assert len(known["import"]) <= 0.08 * total
    assert len(known["lowered"]) <= 0.15 * total
    assert set(known["import"]) | set(known["lowered"]) <= set(cases("node"))
