"""The benchmark's texts: held-out ones from Python's own help, calibration ones that ship with the compiler."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

HELD_OUT_COUNT = 64
PASSAGE_COUNT, PASSAGE_CHARACTERS = 32, 900


def held_out_texts() -> list[str]:
    """64 sentences spread evenly over Python's help topics; the same ones for one Python version."""
    from pydoc_data.topics import topics

    sentences = []
    for name in sorted(topics):
        flat = re.sub(r"\s+", " ", topics[name])
        for sentence in re.split(r"(?<=[.!?]) ", flat):
            if 60 <= len(sentence) <= 300 and sentence[0].isupper() and sentence.endswith("."):
                sentences.append(sentence)
    sentences = list(dict.fromkeys(sentences))
    step = len(sentences) // HELD_OUT_COUNT
    return sentences[::step][:HELD_OUT_COUNT]


def held_out_passages() -> list[str]:
    """32 pieces of about 200 tokens from as many of Python's help topics; the same ones for one Python version."""
    from pydoc_data.topics import topics

    flat = [re.sub(r"\s+", " ", topics[name]).strip() for name in sorted(topics)]
    passages = [text[:PASSAGE_CHARACTERS].rpartition(" ")[0] for text in flat if len(text) >= PASSAGE_CHARACTERS]
    step = len(passages) // PASSAGE_COUNT
    return passages[::step][:PASSAGE_COUNT]


def calibration_texts() -> list[str]:
    """The sentences that ship with the compiler."""
    import compiler.evidence

    shipped = Path(compiler.evidence.__file__).with_name("sentences.txt")
    return [line for line in shipped.read_text(encoding="utf-8").splitlines() if line.strip()]


def encode(checkpoint: Path, texts: list[str]) -> list[dict[str, np.ndarray[Any, Any]]]:
    """One batch of one for every text, unpadded."""
    tokenizer = _tokenizer(checkpoint)
    rows = [np.array([tokenizer.encode(text).ids], np.int64) for text in texts]
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]


def token_row(checkpoint: Path, count: int) -> np.ndarray[Any, Any]:
    """`count` token ids of running text."""
    tokenizer = _tokenizer(checkpoint)
    ids = [token for text in calibration_texts() for token in tokenizer.encode(text, add_special_tokens=False).ids]
    return np.array(ids[:count], np.int64)


def _tokenizer(checkpoint: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return tokenizer
