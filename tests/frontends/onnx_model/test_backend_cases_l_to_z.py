"""ONNX's own node cases, names l to z, and all cases that PyTorch gave, through the importer and the backend."""

from __future__ import annotations

import pytest
from backend_cases import cases
from known_failures import differences

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("letter", "lmnopqrstuvwxyz")
def test_what_fails_is_what_is_listed(letter: str) -> None:
    assert differences("node", lambda name: name.startswith(f"test_{letter}")) == []


def test_no_other_letters() -> None:
    assert {name[5] for name in cases("node")} <= set("abcdefghilmnopqrstuvwxyz")


@pytest.mark.parametrize("kind", ["pytorch-operator", "pytorch-converted"])
def test_all_of_pytorchs_cases_pass(kind: str) -> None:
    assert len(cases(kind)) == {"pytorch-operator": 35, "pytorch-converted": 82}[kind]
    assert differences(kind, lambda name: True) == []
