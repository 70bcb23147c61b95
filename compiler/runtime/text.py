"""Text into the inputs of a model: one padded, truncated batch. The same code serves the compiler and the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import CompilerError
from compiler.runtime.engines import first_line
from compiler.runtime.manifest import TextRecord

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENCODING_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input name -> the field of a tokenizers.Encoding that fills it."""


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json. Raises CompilerError when it, or the `tokenizers` package, cannot be had."""
    doing = f"reading {file}"
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise CompilerError(doing, "tokenizers is not installed", "pip install tokenizers") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        hint = "It should be a tokenizer.json as the tokenizers library writes it."
        raise CompilerError(doing, f"it is no tokenizer: {first_line(error)}", hint) from error


def limited(tokenizer: Tokenizer, record: TextRecord) -> Tokenizer:
    """The tokenizer, set to pad and truncate as the record says."""
    if record.maximum_tokens is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length=record.maximum_tokens)
    tokenizer.enable_padding(pad_id=record.padding_id, pad_token=record.padding_token, length=record.fixed_tokens)
    return tokenizer


def encode_batch(
    tokenizer: Tokenizer, texts: Sequence[str], dtypes: Mapping[str, str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs [texts, tokens] by name for a model whose inputs have the given dtypes.

    Raises CompilerError when there is no text, or an input is none that a tokenizer fills.
    """
    if not texts:
        raise CompilerError("reading text", "there is no text", "Give at least one.")
    for name in dtypes:
        if name not in ENCODING_FIELDS:
            problem = f"text does not give input {name!r}"
            raise CompilerError("reading text", problem, "Give all inputs as arrays, in an .npz file.")
    encodings = tokenizer.encode_batch(list(texts))
    return {
        name: np.array([getattr(encoding, ENCODING_FIELDS[name]) for encoding in encodings], dtype=dtype)
        for name, dtype in dtypes.items()
    }
