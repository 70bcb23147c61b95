"""The whole story on a small model: artifacts that verify, that recipes reproduce, and that failures leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compiler.compile_model import CompileResult, compile_model
from compiler.errors import CompilerError
from compiler.recipe import Recipe, parse_passes
from compiler.runtime.manifest import read_manifest
from compiler.runtime.session import Session
from compiler.runtime.verify import verify

FACTORY = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

def make():
    torch.manual_seed(0)
    return Block().eval(), {"x": torch.randn(3, 64)}

def fails():
    raise ValueError("no weights today")
"""


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "block.py"
    path.write_text(FACTORY)
    return path


def compiled(
    factory: Path, folder: Path, passes: str = "fuse,quantize", backend: str = "onnx_runtime"
) -> CompileResult:
    return compile_model(Recipe(f"{factory}:make", parse_passes(passes), backend=backend), folder)


@pytest.fixture(scope="module")
def artifact(factory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "out"
    compiled(factory, folder)
    return folder


def test_the_artifact_verifies_and_runs_at_another_size(artifact: Path) -> None:
    assert verify(artifact).passed
    session = Session.open(artifact)
    x = np.random.default_rng(0).standard_normal((7, 64), dtype=np.float32)
    rows = np.concatenate([session.run({"x": x[i : i + 1]})["output"] for i in range(7)])
    whole = session.run({"x": x})["output"]
    assert whole.shape == (7, 64)
    assert np.abs(rows - whole).max() < 0.05 * np.abs(whole).max()  # activations are scaled per run


def test_the_report_and_the_manifest_say_what_was_measured(artifact: Path) -> None:
    report = json.loads((artifact / "report.json").read_text())
    manifest = read_manifest(artifact)
    assert [one.name for one in manifest.passes][-1] == "quantize"
    assert 0.99 < float(manifest.evidence["mean_cosine"] or 0) < 1
    assert [one["name"] for one in report["passes"]][-1] == "quantize"
    assert report["payload"]["mean_cosine"] == manifest.evidence["mean_cosine"]
    assert (artifact / "report.html").read_text().startswith("<!doctype html>")


def test_its_own_recipe_gives_the_same_payload(artifact: Path, tmp_path: Path) -> None:
    compile_model(Recipe.read(artifact / "recipe.toml"), tmp_path / "again")
    first, second = read_manifest(artifact), read_manifest(tmp_path / "again")
    assert first.runtime.entry in first.files
    measured = {"report.json", "report.html"}
    assert {n: f for n, f in first.files.items() if n not in measured} == {
        n: f for n, f in second.files.items() if n not in measured
    }


def test_the_eager_backend_gives_the_program_itself(factory: Path, tmp_path: Path) -> None:
    result = compiled(factory, tmp_path / "eager", backend="eager")
    assert verify(tmp_path / "eager").passed
    x = result.program.example_inputs[0]
    output = Session.open(tmp_path / "eager").run({"x": x.numpy()})["output"]
    np.testing.assert_allclose(output, result.program.run(x)[0].numpy(), rtol=1e-5, atol=1e-6)


def test_a_failed_compile_leaves_the_old_artifact_whole(factory: Path, artifact: Path) -> None:
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    with pytest.raises(CompilerError, match="no weights today"):
        compile_model(Recipe(f"{factory}:fails", ()), artifact)
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before
    assert [path.name for path in artifact.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (Recipe("no/such/model", ()), "no/such/model"),
        (Recipe("x", parse_passes("quantise")), "there is no pass 'quantise'"),
        (Recipe("x", parse_passes("quantize:bots=4")), "there is no option 'bots'"),
        (Recipe("x", (), backend="onnxruntime"), "there is no backend 'onnxruntime'"),
        (Recipe("x", (), target="cpuu"), "there is no target 'cpuu'"),
    ],
)
def test_wrong_words_are_answered_before_anything_runs(recipe: Recipe, problem: str, tmp_path: Path) -> None:
    with pytest.raises(CompilerError) as caught:
        compile_model(recipe, tmp_path / "out")
    assert problem in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_the_backend_does_not_serve_is_refused(factory: Path, tmp_path: Path) -> None:
    recipe = Recipe(f"{factory}:make", (), backend="onnx_runtime", target="cuda:sm_90")
    with pytest.raises(CompilerError, match="lowering"):
        compile_model(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
