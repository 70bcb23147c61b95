"""The tokenizer beside a model: its file, what pads a batch, and how many tokens a text may have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.runtime.manifest import DimensionRange, TensorRecord, TextRecord
from compiler.runtime.text import limited, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
LIMITS = {"tokenizer_config.json": "model_max_length", "sentence_bert_config.json": "max_seq_length"}
"""File -> its entry for the most tokens of a text; the smallest holds."""
UNLIMITED_TOKENS = 1_000_000
"""transformers writes absurdly large limits for "no limit"."""


def open_tokenizer(folder: Path, allowed: DimensionRange) -> tuple[Tokenizer, TextRecord]:
    """The tokenizer of a model's folder, set to the limits of its record.

    `allowed` is how many tokens the model takes at once. Truncation and padding that tokenizer.json itself asks for do
    not count: they are leftovers of training. Raises CompilerError when the tokenizer cannot be read.
    """
    tokenizer = read_tokenizer(folder / TOKENIZER_NAME)
    limits = [read_settings(folder / file).get(entry) for file, entry in LIMITS.items()]
    known = [limit for limit in (*limits, allowed.maximum) if isinstance(limit, int) and limit < UNLIMITED_TOKENS]
    padding_token, padding_id = _padding(tokenizer, read_settings(folder / "tokenizer_config.json"))
    record = TextRecord(
        tokenizer=TOKENIZER_NAME,
        maximum_tokens=min(known, default=None),
        fixed_tokens=allowed.maximum if allowed.minimum == allowed.maximum else None,
        padding_token=padding_token,
        padding_id=padding_id,
    )
    return limited(tokenizer, record), record


def copy_tokenizer(source: Path, folder: Path, allowed: DimensionRange) -> TextRecord:
    """Put the tokenizer of the model's folder `source` into `folder`, as short as it can be written, without limits."""
    tokenizer, record = open_tokenizer(source, allowed)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    (folder / TOKENIZER_NAME).write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    return record


def token_range(inputs: Sequence[TensorRecord], dimensions: Mapping[str, DimensionRange]) -> DimensionRange:
    """How many tokens a model takes at once: the range of the second dim of `input_ids`."""
    for spec in inputs:
        if spec.name == "input_ids" and len(spec.shape) == 2:
            dim = spec.shape[1]
            return DimensionRange(dim, dim) if isinstance(dim, int) else dimensions[dim]
    return DimensionRange()


def read_settings(file: Path) -> dict[str, Any]:
    """The entries of a model's .json file; none where there is no such file, or it is damaged."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _padding(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> tuple[str, int]:
    """The padding token and its id: as configured, as the tokenizer pads by itself, or the end of text."""
    own = tokenizer.padding or {}
    for candidate in (settings.get("pad_token"), own.get("pad_token"), "[PAD]", "<pad>", settings.get("eos_token")):
        token = candidate.get("content") if isinstance(candidate, dict) else candidate
        identifier = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if identifier is not None:
            return str(token), int(identifier)
    return str(tokenizer.id_to_token(0)), 0
