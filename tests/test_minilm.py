"""The main job on the real all-MiniLM-L6-v2: int8 within its size and accuracy, the same bytes twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.compile_model import CompileResult, compile_model
from compiler.recipe import Recipe
from compiler.runtime.manifest import read_manifest
from compiler.runtime.session import Session
from compiler.runtime.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(minilm_int8: CompileResult) -> CompileResult:
    return minilm_int8


def test_the_artifact_is_small_and_near_the_original(result: CompileResult) -> None:
    assert sum(path.stat().st_size for path in result.folder.iterdir()) <= 23.0e6
    assert result.payload is not None
    assert result.data.scoring_count == 64
    assert result.payload.fidelity.mean_cosine >= 0.9975
    assert (result.payload.fidelity.neighbour_agreement or 0) >= 0.93


def test_it_verifies_and_tells_sentences_apart(result: CompileResult) -> None:
    assert verify(result.folder).passed
    session = Session.open(result.folder)
    sentences = ["A dog runs in the park.", "A puppy is running outside.", "The central bank raised its rate."]
    embeddings = session.run(session.encode(sentences))["sentence_embedding"]
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > 0.5 > 0.3 > similarity[0, 2]


def test_every_linear_site_runs_on_integers(result: CompileResult) -> None:
    states = {o.site: o.state for record in result.records for o in record.result.outcomes if record.name == "quantize"}
    kept = [site for site, state in states.items() if state in ("grafted", "softened")]
    assert len([site for site in kept if "encoder.layer" in site]) == 36
    report = json.loads((result.folder / "report.json").read_text())
    kernels = report["kernels"]
    assert kernels["DynamicQuantizeMatMul"] + kernels["MatMulIntegerToFloat"] == 36
    assert "MatMul" not in kernels


def test_the_same_recipe_gives_the_same_payload(result: CompileResult, tmp_path: Path) -> None:
    compile_model(Recipe.read(result.folder / "recipe.toml"), tmp_path / "again")
    first, second = read_manifest(result.folder), read_manifest(tmp_path / "again")
    measured = {"report.json", "report.html"}
    assert {n: f.sha256 for n, f in first.files.items() if n not in measured} == {
        n: f.sha256 for n, f in second.files.items() if n not in measured
    }
