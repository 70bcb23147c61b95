"""TfIdfVectorizer against ONNX Runtime at free batch sizes, in all its modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from single_node import assert_agrees, node_model, read

from compiler.errors import CompilerError

POOL = {"pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7], "ngram_counts": [0, 4], "ngram_indexes": [0, 1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
def test_modes(mode: str, tmp_path: Path):
    model = node_model(
        "TfIdfVectorizer", {"x": (np.int64, ["batch", 6])}, 9, mode=mode, min_gram_length=1, max_gram_length=2,
        max_skip_count=1, weights=[0.5, 2.0, 1.0, 3.0, 0.25, 4.0, 1.5], **POOL,
    )  # fmt: skip
    samples = [{"x": np.random.default_rng(rows).integers(2, 9, (rows, 6))} for rows in (4, 2)]
    assert_agrees(model, tmp_path, samples)


def test_strings_are_refused():
    lengths = {"min_gram_length": 1, "max_gram_length": 1, "max_skip_count": 0}
    model = node_model(
        "TfIdfVectorizer", {"x": (np.int64, [6])}, 9, mode="TF", pool_strings=["a"], ngram_counts=[0],
        ngram_indexes=[0], **lengths,
    )  # fmt: skip
    with pytest.raises(CompilerError, match="it counts strings"):
        read(model)


def test_one_row():
    model = node_model(
        "TfIdfVectorizer", {"x": (np.int64, [6])}, 9, mode="TF", min_gram_length=2, max_gram_length=2,
        max_skip_count=0, **POOL,
    )  # fmt: skip
    x = np.array([5, 6, 7, 8, 6, 7])
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(read(model).run(torch.from_numpy(x))[0].numpy(), expected)
