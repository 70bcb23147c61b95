"""Running an artifact: the right numbers, and a clear refusal for every input that does not fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import external_data_helper, load, numpy_helper
from small_artifact import (
    MOST_TOKENS,
    WIDTH,
    linear_reference,
    linear_weights,
    rewrite_manifest,
    write_bag_of_words,
    write_linear,
)

from compiler.errors import CompilerError
from compiler.runtime.integrity import sha256_of
from compiler.runtime.session import Session


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The linear model, open."""
    folder = tmp_path_factory.mktemp("linear") / "out"
    write_linear(folder)
    return Session.open(folder, threads=1)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The text model, open."""
    folder = tmp_path_factory.mktemp("bag")
    write_bag_of_words(folder / "out", folder / "model")
    return Session.open(folder / "out")


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_numbers_are_those_of_numpy(linear: Session, batch: int) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, WIDTH)).astype(np.float32)
    found, expected = linear.run({"x": x}), linear_reference(x, linear_weights(0))
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["choice"], expected["choice"])


def test_layout_and_byte_order_do_not_matter(linear: Session) -> None:
    x = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
    expected = linear.run({"x": x})["scores"]
    for same in (np.asfortranarray(x), x.astype(">f4"), np.repeat(x, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(linear.run({"x": same})["scores"], expected)


@pytest.mark.parametrize(
    ("inputs", "problem", "hint"),
    [
        ({}, "input 'x' is missing", r"It takes x: float32\[batch, 8\]"),
        ({"x1": 0}, "there is no input 'x1'", "Did you mean 'x'"),
        ({"x": [[1.0] * WIDTH]}, "is list, not a numpy array", "numpy.asarray"),
        ({"x": np.zeros((1, WIDTH))}, "is float64 and should be float32", r"x.astype\('float32'\)"),
        ({"x": np.zeros(WIDTH, np.float32)}, r"has rank 1 \[8\] and should have rank 2", "It takes"),
        ({"x": np.zeros((1, 7), np.float32)}, "dim 1 of input 'x' is 7 and should be 8", "It takes"),
        ({"x": np.zeros((65, WIDTH), np.float32)}, "'batch' .* is 65 and should be 1 to 64", "It takes"),
        ({"x": np.zeros((0, WIDTH), np.float32)}, "'batch' .* is 0 and should be 1 to 64", "It takes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(linear: Session, inputs: dict[str, Any], problem: str, hint: str) -> None:
    with pytest.raises(CompilerError, match=problem) as caught:
        linear.run(inputs)
    assert caught.match("running linear")
    assert re.search(hint, caught.value.hint)


def test_dims_of_one_name_must_agree(bag: Session) -> None:
    ids = np.ones((2, 3), np.int64)
    with pytest.raises(CompilerError, match="'sequence' is 3 in input 'input_ids' and 4 in input 'attention_mask'"):
        bag.run({"input_ids": ids, "attention_mask": np.ones((2, 4), np.int64)})


def test_what_the_engine_refuses_is_explained(bag: Session) -> None:
    ids = np.full((1, 2), 1000)
    with pytest.raises(CompilerError, match=r"running bag: .*out of") as caught:
        bag.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert "input_ids [1, 2]" in caught.value.hint


def test_texts_are_padded_to_the_longest_and_cut_at_the_limit(bag: Session) -> None:
    inputs = bag.encode(["the cat sat", "mat", "a dog"])
    np.testing.assert_array_equal(inputs["input_ids"], [[2, 3, 4], [7, 0, 0], [6, 1, 0]])
    np.testing.assert_array_equal(inputs["attention_mask"], [[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    alone, batched = bag.run(bag.encode(["mat"])), bag.run(inputs)
    np.testing.assert_array_equal(batched["total"][1], alone["total"][0])
    assert bag.encode(["cat " * 100])["input_ids"].shape == (1, MOST_TOKENS)


def test_text_that_cannot_be_read_is_refused(linear: Session, bag: Session) -> None:
    with pytest.raises(CompilerError, match="this artifact has no tokenizer") as caught:
        linear.encode(["the cat"])
    assert "--input" in caught.value.hint
    with pytest.raises(CompilerError, match="there is no text"):
        bag.encode([])


@pytest.mark.parametrize(
    ("runtime", "problem", "hint"),
    [
        ({"name": "onnxruntim"}, "there is no engine 'onnxruntim'", "Did you mean 'onnxruntime'"),
        (
            {"requires": {"onnxruntime": "99.1"}},
            "it needs onnxruntime 99.1 or later",
            "pip install 'onnxruntime>=99.1'",
        ),
        ({"requires": {"no_such_package": "1"}}, "needs no_such_package, which is not installed", "pip install"),
        ({"instructions": ["sse2", "no_such_unit"]}, "this processor lacks no_such_unit", "--target"),
        ({"entry": "recipe.toml"}, "onnxruntime cannot open recipe.toml", "compile verify"),
    ],
)
def test_a_machine_that_lacks_something_says_what(
    tmp_path: Path, runtime: dict[str, Any], problem: str, hint: str
) -> None:
    write_linear(tmp_path / "out")
    whole = {
        "name": "onnxruntime",
        "entry": "model.onnx",
        "requires": {},
        "instructions": [],
        "options": {},
        "kernels": {},
    }
    rewrite_manifest(tmp_path / "out", runtime={**whole, **runtime})
    with pytest.raises(CompilerError, match=problem) as caught:
        Session.open(tmp_path / "out")
    assert hint in caught.value.hint


def test_weights_outside_the_artifact_are_not_read(tmp_path: Path) -> None:
    """A forged model.onnx whose external weights are a file elsewhere: its bytes must not come out as numbers."""
    secret = linear_weights(7)
    (tmp_path / "secret.bin").write_bytes(secret.tobytes())
    write_linear(tmp_path / "out")
    weights = numpy_helper.from_array(secret, "weights")
    external_data_helper.set_external_data(weights, "../secret.bin", 0, secret.nbytes)
    weights.ClearField("raw_data")
    path = tmp_path / "out" / "model.onnx"
    model = load(path)
    model.graph.initializer[0].CopyFrom(weights)
    path.write_bytes(model.SerializeToString())
    files = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    files["model.onnx"] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    rewrite_manifest(tmp_path / "out", files=files)
    with pytest.raises(CompilerError, match=r"cannot open model\.onnx"):
        Session.open(tmp_path / "out")


def test_the_runtime_imports_neither_torch_nor_passes() -> None:
    code = (
        "import sys, pkgutil, importlib, compiler.runtime as runtime\n"
        "for module in pkgutil.iter_modules(runtime.__path__, 'compiler.runtime.'):\n"
        "    importlib.import_module(module.name)\n"
        "tops = {name.split('.')[0] for name in sys.modules}\n"
        "heavy = {'torch', 'onnx', 'transformers', 'onnxruntime', 'tokenizers', 'pluggy', 'rich', 'cyclopts'}\n"
        "print(sorted(tops & heavy), 'compiler.passes' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
