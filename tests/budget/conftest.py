"""What every test of budgets starts from."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No costs that another run kept."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
