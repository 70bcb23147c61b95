"""`--budget` on the command line: what is chosen, what the recipe makes again, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

MODEL = f"{Path(__file__).parent.parent / 'budget' / 'budgeted_models.py'}:build"
ALLOWED = "canonicalize,quantize:bits=8:activations=none,quantize:bits=4:activations=none"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No costs that an earlier run kept."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))


def mix_of(folder: Path) -> dict[str, Any]:
    """What the report of an artifact says of its budget."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = next(one["mix"] for one in report["passes"] if one["mix"] is not None)
    return found


@pytest.mark.slow
def test_a_budget_chooses_and_the_recipe_makes_the_same_bytes_again(run_command: Command, tmp_path: Path) -> None:
    ran = run_command(MODEL, "--passes", ALLOWED, "--budget", "size=0.3", "-o", "out")
    assert ran.code == 0, ran.stderr
    mix = mix_of(tmp_path / "out")
    assert {one["choice"] for one in mix["places"]} <= {
        "", "quantize:activations=none", "quantize:bits=4:activations=none"
    }  # fmt: skip
    payload = tmp_path / "out" / "model.onnx"
    assert payload.stat().st_size <= mix["limits"][0]["allowed"]
    assert "size=0.3: " in ran.stderr
    assert "Budget: size=0.3" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    again = run_command("--recipe", "out/recipe.toml", "-o", "again")
    assert again.code == 0, again.stderr
    assert (tmp_path / "again" / "model.onnx").read_bytes() == payload.read_bytes()


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("sise=0.3", "'sise=0.3' is none of size=..., flops=..., latency=..."),
        ("size=3", "size=3: a share is above 0 and at most 1"),
    ],
)
def test_a_budget_that_means_nothing_is_one_line_and_a_hint(run_command: Command, budget: str, said: str) -> None:
    ran = run_command(MODEL, "--budget", budget, "-o", "out")
    assert ran.code == 1
    assert said in ran.stderr
    assert "Hint: " in ran.stderr
