"""Timing: alternating rounds, honest shapes, and sides that cannot run are refused."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_artifact import write_bag_of_words, write_linear

from compiler.errors import CompilerError
from compiler.runtime.bench import BenchOptions, Spread, bench, bench_inputs
from compiler.runtime.contenders import Arrays, Contender, contender
from compiler.runtime.footprint import measure_footprint
from compiler.runtime.manifest import read_manifest

QUICK = {"rounds": 4, "calls": 2, "warmup": 1}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear model."""
    folder = tmp_path_factory.mktemp("bench") / "linear"
    write_linear(folder)
    return folder


def test_against_an_onnx_file_and_an_artifact_and_a_callable(linear: Path, tmp_path: Path) -> None:
    shutil.copy(linear / "model.onnx", tmp_path / "other.onnx")
    threads_given = []

    def load(threads: int | None) -> object:
        threads_given.append(threads)
        return lambda inputs: time.sleep(0.004)

    sleeper = Contender("sleeper", load)
    against = [contender(tmp_path / "other.onnx"), contender(linear), sleeper]
    report = bench(linear, BenchOptions({"batch": 32}, threads=1, **QUICK), against)
    assert [side.name for side in report.sides] == ["linear", "other.onnx", "linear", "sleeper"]
    assert report.shapes == {"x": (32, 8)}
    assert threads_given == [1]
    slept = report.sides[3]
    assert 0.004 <= slept.latency_seconds.median < 0.05
    assert slept.ratio.median > 5
    assert slept.footprint is None
    assert report.sides[0].ratio == Spread(1.0, 1.0, 1.0)
    for side in report.sides[:3]:
        assert side.footprint is not None
        assert 0 < side.footprint.interpreter_bytes <= side.footprint.resident_bytes < 2**30
        assert side.footprint.open_seconds > 0
    assert report.sides[1].bytes == (tmp_path / "other.onnx").stat().st_size
    assert json.loads(json.dumps(report.to_json()))["sides"][3]["footprint"] is None
    assert "sleeper" in report.text()


def test_sides_take_turns(linear: Path) -> None:
    order: list[str] = []

    def recording(name: str) -> Contender:
        return Contender(name, lambda threads: lambda inputs: order.append(name))

    bench(linear, BenchOptions({}, **QUICK), [recording("a"), recording("b")])
    timed = order[2:]  # after one warm-up call each
    assert timed == list("aaabbbaaabbbbbbaaaaaabbb")


def test_inputs_are_the_golden_ones_in_another_shape(tmp_path: Path) -> None:
    write_bag_of_words(tmp_path / "out", tmp_path / "model")
    manifest = read_manifest(tmp_path / "out")
    golden: Arrays = {"input_ids": np.array([[2, 3, 4], [6, 7, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    inputs = bench_inputs(manifest, golden, {"batch": 1, "sequence": 5})
    np.testing.assert_array_equal(inputs["input_ids"], [[2, 3, 4, 2, 3]])
    assert bench_inputs(manifest, golden, {})["input_ids"].shape == (2, 3)
    with pytest.raises(CompilerError, match="there is no dim 'sequenc'") as caught:
        bench_inputs(manifest, golden, {"sequenc": 5})
    assert "sequence" in caught.value.hint


def test_sizes_out_of_range_are_refused(linear: Path) -> None:
    with pytest.raises(CompilerError, match=r"'batch' .* is 100 and should be 1 to 64"):
        bench(linear, BenchOptions({"batch": 100}, **QUICK))


def test_sides_that_cannot_run_are_refused(linear: Path, tmp_path: Path) -> None:
    write_bag_of_words(tmp_path / "bag", tmp_path / "model")
    with pytest.raises(CompilerError, match=r"benching model\.onnx: it wants an input 'input_ids'"):
        bench(linear, BenchOptions({}, **QUICK), [contender(tmp_path / "bag" / "model.onnx")])
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(CompilerError, match=r"benching broken\.onnx"):
        bench(linear, BenchOptions({}, **QUICK), [contender(tmp_path / "broken.onnx")])
    for path in (tmp_path / "none", tmp_path / "none.onnx"):
        with pytest.raises(CompilerError, match=r"is no artifact and no \.onnx file"):
            contender(path)


def test_a_model_that_cannot_be_opened_in_a_process_of_its_own_says_why(linear: Path, tmp_path: Path) -> None:
    shutil.copytree(linear, tmp_path / "copy")
    (tmp_path / "copy" / "run.py").unlink()
    with pytest.raises(CompilerError, match=r"measuring the memory of copy: opening artifact .*run\.py is missing"):
        measure_footprint(tmp_path / "copy", {"x": np.ones((1, 8), np.float32)}, None)


@given(values=st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=30))
def test_spread_is_the_median_between_the_quartiles(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.median == pytest.approx(statistics.median(values))
    assert min(values) <= spread.lower <= spread.median <= spread.upper <= max(values)
    assert spread.lower == pytest.approx(np.percentile(values, 25))
