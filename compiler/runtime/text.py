"""Text into the inputs of a model: one padded, truncated batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import CompilerError
from compiler.runtime.engines import first_line
from compiler.runtime.manifest import Manifest, TextRecord

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENCODING_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input name -> the field of a tokenizers.Encoding that fills it."""


class TextEncoder:
    """The artifact's tokenizer, set to the limits of its model."""

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest) -> None:
        self._tokenizer = tokenizer
        self._inputs = manifest.inputs

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> TextEncoder:
        """Read the tokenizer. Raises CompilerError when the model takes no text or `tokenizers` is not installed."""
        doing = f"reading text for {manifest.name}"
        if manifest.text is None:
            takes = "; ".join(map(str, manifest.inputs))
            raise CompilerError(
                doing, "this artifact has no tokenizer", f"Give arrays instead, with --input F.npz. It takes {takes}."
            )
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise CompilerError(doing, "tokenizers is not installed", "pip install tokenizers") from None
        try:
            tokenizer = Tokenizer.from_file(str(folder / manifest.text.tokenizer))
        except Exception as error:
            problem = f"{manifest.text.tokenizer} cannot be read: {first_line(error)}"
            raise CompilerError(doing, problem, "Check the files with: compile verify") from error
        _set_limits(tokenizer, manifest.text)
        return cls(tokenizer, manifest)

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Inputs [texts, tokens] for the texts, padded to the longest."""
        if not texts:
            raise CompilerError("reading text", "there is no text", "Give at least one.")
        encodings = self._tokenizer.encode_batch(list(texts))
        filled = {}
        for spec in self._inputs:
            field = ENCODING_FIELDS.get(spec.name)
            if field is None:
                problem = f"text does not give input {spec.name!r}"
                raise CompilerError("reading text", problem, "Give all inputs as arrays, with --input F.npz.")
            filled[spec.name] = np.array([getattr(encoding, field) for encoding in encodings], dtype=spec.dtype)
        return filled


def _set_limits(tokenizer: Tokenizer, text: TextRecord) -> None:
    if text.maximum_tokens is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length=text.maximum_tokens)
    tokenizer.enable_padding(pad_id=text.padding_id, pad_token=text.padding_token, length=text.fixed_tokens)
