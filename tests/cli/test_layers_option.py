"""`layers=` on the command line: what is replaced, what is said of it, and where a word of it means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import MODELS, Command

MODEL = f"{MODELS}:encoder"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No costs that an earlier run kept."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
def test_explain_leaves_out_what_layers_leave_out(run_command: Command) -> None:
    ran = run_command("explain", "sliding-window:window=2:layers=1+3", MODEL, "--json")
    explained = ran.document["passes"][-1]
    said = [site.get("proposal") or site["refused"] for site in explained["sites"]]
    assert said == ["layers=1+3 leaves it out", "window of 2 and 4 sinks"] * 2


@pytest.mark.slow
def test_a_compile_ranks_sites_and_shows_what_they_cost(run_command: Command, tmp_path: Path) -> None:
    passes = "canonicalize,sliding-window:window=2:sinks=0:layers=auto-0.5"
    ran = run_command(MODEL, "--passes", passes, "--backend", "eager", "-o", "out")
    assert ran.code == 0, ran.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    ranking = report["passes"][-1]["ranking"]
    assert report["passes"][0]["ranking"] is None
    assert [site["site"] for site in ranking["sites"]] == [f"layers.{index}" for index in range(4)]
    replaced = [site["score"] for site in ranking["sites"] if site["replaced"]]
    kept = [site["score"] for site in ranking["sites"] if not site["replaced"]]
    assert len(replaced) == len(kept) == 2
    assert max(replaced) <= min(kept)
    states = {site["site"]: site["state"] for site in report["sites"] if site["pass"] == "sliding-window"}
    assert states == {site["site"]: "grafted" if site["replaced"] else "refused" for site in ranking["sites"]}
    assert "Layers: sliding-window" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "sites ranked by recall on" in ran.stderr
    recipe = (tmp_path / "out" / "recipe.toml").read_text(encoding="utf-8")
    assert 'layers = "auto-0.5"' in recipe


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("auto-2", "layers=auto-2: a share is above 0 and at most 1, as in auto-0.75"),
        ("7", "layers=7: '7' names none of 4 sites, of layers 0 to 3, such as layers.0"),
    ],
)
def test_words_that_mean_nothing_are_one_line_and_a_hint(run_command: Command, layers: str, said: str) -> None:
    ran = run_command(MODEL, "--passes", f"sliding-window:window=2:layers={layers}", "--backend", "eager", "-o", "out")
    assert ran.code == 1
    assert said in ran.stderr
    assert "Hint: " in ran.stderr
