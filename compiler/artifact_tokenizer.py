"""The tokenizer that an artifact carries: one tokenizer.json, and the limits that the model sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import CompilerError
from compiler.runtime.manifest import DimensionRange, TensorRecord, TextRecord

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
UNLIMITED_TOKENS = 1_000_000
"""transformers writes absurdly large limits for "no limit"."""


def write_tokenizer(
    source: Path, folder: Path, inputs: Sequence[TensorRecord], dimensions: Mapping[str, DimensionRange]
) -> TextRecord:
    """Put the tokenizer of `source` (a model's folder, or a file in it) into `folder`, as short as it can be written.

    Truncation and padding that the file asks for are taken out: the record has the model's own limits instead.
    Raises CompilerError when there is no tokenizer that `tokenizers` can read.
    """
    base = source if source.is_dir() else source.parent
    tokenizer = _read(source)
    settings = _settings(base)
    padding_token, padding_id = _padding(tokenizer, settings)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    (folder / TOKENIZER_NAME).write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    allowed = _token_range(inputs, dimensions)
    limit = settings.get("model_max_length")
    limits = [limit] if isinstance(limit, int) and limit < UNLIMITED_TOKENS else []
    limits += [allowed.maximum] if allowed.maximum is not None else []
    return TextRecord(
        tokenizer=TOKENIZER_NAME,
        maximum_tokens=min(limits, default=None),
        fixed_tokens=allowed.maximum if allowed.minimum == allowed.maximum else None,
        padding_token=padding_token,
        padding_id=padding_id,
    )


def _read(source: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    file = source / TOKENIZER_NAME if source.is_dir() else source
    doing = f"reading the tokenizer of {source.name}"
    try:
        if file.name == TOKENIZER_NAME and file.is_file():
            return Tokenizer.from_file(str(file))
        return _converted(source)
    except Exception as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CompilerError(doing, problem, f"The model's folder needs a {TOKENIZER_NAME} to read text.") from error


def _converted(source: Path) -> Tokenizer:
    """A tokenizer that only transformers can read, such as one inside a .gguf."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    if source.is_dir():
        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True)
    else:
        loaded = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    return Tokenizer.from_str(loaded.backend_tokenizer.to_str())


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
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


def _token_range(inputs: Sequence[TensorRecord], dimensions: Mapping[str, DimensionRange]) -> DimensionRange:
    """How many tokens the model takes at once: the range of the second dim of `input_ids`."""
    for spec in inputs:
        if spec.name == "input_ids" and len(spec.shape) == 2:
            dim = spec.shape[1]
            return DimensionRange(dim, dim) if isinstance(dim, int) else dimensions[dim]
    return DimensionRange()
