"""Real ONNX models from packages: read, rewritten, lowered and run, against ONNX Runtime on the original file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from real_models import REAL_MODELS, Arrays

from compiler.compile_model import CompileResult, compile_model
from compiler.program import Dimension
from compiler.recipe import Recipe, parse_passes
from compiler.runtime.session import Session

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
"""Of the largest output."""
LARGEST_SHARE = {
    "ocr-recognition": 0.5,
    "magika": 0.3,
    "basic-pitch": 0.9,
    "silero-vad-16k": 0.7,
}
"""Of the bytes after quantizing: recurrent layers, transposed convolutions and small sites stay in float32."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that compiles a model by name, once."""
    folder = tmp_path_factory.mktemp("real")

    @cache
    def compile_once(name: str, passes: str) -> tuple[CompileResult, Path]:
        model = REAL_MODELS[name]
        out = folder / f"{name}-{passes.count(',')}"
        recipe = Recipe(str(model.file), parse_passes(passes), inputs=model.stated)
        return compile_model(recipe, out), out

    return compile_once


def original(name: str, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """What ONNX Runtime gives for the file as it came."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(REAL_MODELS[name].file), options, providers=["CPUExecutionProvider"])
    whole = inputs | {key: np.array(number) for key, number in REAL_MODELS[name].fixed}
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, whole), strict=True))


@pytest.mark.parametrize("name", REAL_MODELS)
def test_the_artifact_gives_the_originals_numbers_at_two_sizes(name: str, compiled: Any) -> None:
    result, folder = compiled(name, "canonicalize,fuse")
    session = Session.open(folder)
    for make in (REAL_MODELS[name].small, REAL_MODELS[name].large):
        inputs = make()
        expected, found = original(name, inputs), session.run(inputs)
        assert list(found) == list(expected)
        for output, array in expected.items():
            assert found[output].shape == array.shape
            difference = float(np.abs(found[output] - array).max())
            assert difference <= TOLERANCE * float(np.abs(array).max()), output
    assert any(isinstance(dim, Dimension) for spec in result.program.inputs for dim in spec.shape)


def test_sizes_in_multiples_are_kept(compiled: Any) -> None:
    result, _ = compiled("ocr-detection", "canonicalize,fuse")
    _, height, width = (dim for dim in result.program.inputs[0].shape if isinstance(dim, Dimension))
    assert (height.multiple, width.multiple) == (32, 32)


@pytest.mark.parametrize("name", LARGEST_SHARE)
def test_quantized_with_evidence(name: str, compiled: Any) -> None:
    result, folder = compiled(name, "canonicalize,fuse,quantize")
    plain, _ = compiled(name, "canonicalize,fuse")
    assert (folder / "model.onnx").stat().st_size < LARGEST_SHARE[name] * plain_bytes(plain)
    inputs = REAL_MODELS[name].small()
    expected, found = original(name, inputs), Session.open(folder).run(inputs)
    for output, array in expected.items():
        ours, theirs = found[output].ravel(), array.ravel()
        cosine = float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
        assert cosine > 0.94, output
    assert result.evidence.fidelity.mean_cosine > 0.94
    assert result.manifest.evidence["mean_cosine"] == pytest.approx(result.payload.fidelity.mean_cosine)


def plain_bytes(result: CompileResult) -> int:
    """The size of an artifact's payload."""
    return result.manifest.files["model.onnx"].bytes
