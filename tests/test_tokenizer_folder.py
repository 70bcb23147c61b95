"""What a model's folder says of its tokenizer, against sentence-transformers and transformers on the real MiniLM."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_artifact import MOST_TOKENS, write_tokenizer_files

from compiler.errors import CompilerError
from compiler.runtime.manifest import DimensionRange
from compiler.runtime.text import encode_batch, limited, read_tokenizer
from compiler.tokenizer_folder import copy_tokenizer, open_tokenizer

DTYPES = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), "int64")
TEXTS = (
    "A cat sat on the mat.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 猫",
    "",
    "word " * 400,
)


def test_minilm_is_encoded_as_transformers_does(minilm_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    record = copy_tokenizer(minilm_folder, tmp_path, DimensionRange(1, 512))
    assert record.maximum_tokens == 256, "as in sentence_bert_config.json"
    found = encode_batch(limited(read_tokenizer(tmp_path / "tokenizer.json"), record), TEXTS, DTYPES)
    theirs = AutoTokenizer.from_pretrained(minilm_folder)
    expected = theirs(list(TEXTS), padding=True, truncation=True, max_length=256, return_tensors="np")
    for name in DTYPES:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    ("allowed", "maximum", "fixed"),
    [
        (DimensionRange(1, None), MOST_TOKENS, None),
        (DimensionRange(1, 4), 4, None),
        (DimensionRange(5, 5), 5, 5),
        (DimensionRange(9, 9), MOST_TOKENS, 9),
    ],
)
def test_the_smallest_limit_holds(tmp_path: Path, allowed: DimensionRange, maximum: int, fixed: int | None) -> None:
    tokenizer, record = open_tokenizer(write_tokenizer_files(tmp_path), allowed)
    assert (record.maximum_tokens, record.fixed_tokens) == (maximum, fixed)
    shape = encode_batch(tokenizer, ["cat " * 50], {"input_ids": "int64"})["input_ids"].shape
    assert shape == (1, fixed or maximum)


def test_a_limit_that_means_none_is_none(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    tokenizer, record = open_tokenizer(tmp_path, DimensionRange())
    assert record.maximum_tokens is None
    assert encode_batch(tokenizer, ["cat " * 50], {"input_ids": "int64"})["input_ids"].shape == (1, 50)


@pytest.mark.parametrize("settings", ['{"pad_token": "mat"}', '{"pad_token": null, "eos_token": {"content": "mat"}}'])
def test_the_configured_padding_token_is_used(tmp_path: Path, settings: str) -> None:
    from tokenizers import Tokenizer, models

    (tmp_path / "tokenizer_config.json").write_text(settings)
    Tokenizer(models.WordLevel({"cat": 0, "mat": 1}, unk_token="cat")).save(str(tmp_path / "tokenizer.json"))
    _, record = open_tokenizer(tmp_path, DimensionRange())
    assert (record.padding_token, record.padding_id) == ("mat", 1)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "9.0", "model": {"type": "None"}}'])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CompilerError, match=r"reading .*tokenizer\.json: it is no tokenizer"):
        open_tokenizer(tmp_path, DimensionRange())


def test_inputs_that_text_does_not_fill_are_refused(tmp_path: Path) -> None:
    tokenizer, _ = open_tokenizer(write_tokenizer_files(tmp_path), DimensionRange())
    with pytest.raises(CompilerError, match="text does not give input 'pixel_values'"):
        encode_batch(tokenizer, ["cat"], {"input_ids": "int64", "pixel_values": "float32"})
