"""`verify` on numbers: what counts as the same on another machine, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_artifact import rewrite_manifest, write_linear

from compiler.errors import CompilerError
from compiler.runtime.golden import read_golden, write_golden
from compiler.runtime.integrity import sha256_of
from compiler.runtime.verify import output_error, verify

NAN, INFINITY = float("nan"), float("inf")


def shifted_golden(folder: Path, output: str, shift: float) -> None:
    """Move one element of a golden output: the device then gives other numbers than were recorded."""
    golden = read_golden(folder / "golden.npz")
    golden.outputs[output].flat[0] += golden.outputs[output].dtype.type(shift)
    write_golden(folder / "golden.npz", golden)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["golden.npz"]["sha256"] = sha256_of(folder / "golden.npz")
    rewrite_manifest(folder, files=files)


def test_numbers_within_the_tolerance_pass(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    shifted_golden(tmp_path / "out", "scores", 1e-6)
    report = verify(tmp_path / "out")
    assert report.passed
    assert 0 < report.outputs[0].error < 1e-5
    assert report.outputs[0].reference_error is not None


@pytest.mark.parametrize(("output", "shift"), [("scores", 0.01), ("choice", 1)])
def test_other_numbers_fail_and_name_the_output(tmp_path: Path, output: str, shift: float) -> None:
    write_linear(tmp_path / "out")
    shifted_golden(tmp_path / "out", output, shift)
    report = verify(tmp_path / "out")
    assert [o.name for o in report.outputs if not o.passed] == [output]
    assert "OTHER NUMBERS" in report.text()
    with pytest.raises(CompilerError, match=rf"other numbers here: {output} is off by"):
        report.require()


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, -4.0], [1.1, -4.0], 0.025),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([INFINITY, 1.0], [INFINITY, 1.0], 0.0),
        ([-INFINITY, 1.0], [INFINITY, 1.0], INFINITY),
        ([NAN, 1.0], [0.0, 1.0], INFINITY),
        ([0.0, 1.0], [NAN, 1.0], INFINITY),
        ([1.0], [1.0, 1.0], INFINITY),
        ([], [], 0.0),
    ],
)
def test_error_of_an_output(found: list[float], expected: list[float], error: float) -> None:
    assert output_error(np.array(found), np.array(expected)) == pytest.approx(error)


def test_error_of_integers_is_the_share_that_differs() -> None:
    assert output_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert output_error(np.array([1, 2]), np.array([1.0, 2.0])) == INFINITY
