"""Text for language models: documents, split in two, each half joined and cut into windows of consecutive tokens.

A language model is judged on what it says inside a text, so lines are no samples: a window is. Documents are shared out
by turns, so that no document is in both halves; a single one is cut in the middle. From a large collection a passage of
each of many documents is taken, not the whole of the first few. Where a model is also trained, three of four documents
that do not score are trained on, in longer windows, and the fourth is left to calibrate with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from compiler.errors import CompilerError

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.runtime.manifest import DimensionRange

SHIPPED_PROSE = Path(__file__).parent / "prose"
"""Sixteen short documents, written for this purpose: 40 kB, about 9,000 tokens."""

WINDOW_TOKENS = 256
TRAINING_WINDOW_TOKENS = 512
"""Long enough to need what has left an attention window."""
CALIBRATION_TURN = 4
"""Of documents that do not score, every one of so many calibrates where the others are trained on."""
TYPICAL_WEIGHTS = 135e6
SCORING_WINDOWS = (2, 8)
CALIBRATION_WINDOWS = (8, 32)
"""Least and most: the most for models of up to 135 million weights, fewer of a larger one."""

Item = TypeVar("Item")
Encode = Callable[[str], list[int]]

LEAST_TOKENS = 2
SHORT_DOCUMENT_TOKENS = 32
CHARACTERS_A_TOKEN = 8
"""More than any text has: enough is read, and not a library."""


@dataclass(frozen=True)
class TokenWindows:
    """Token ids of both halves, a window [1, length] each; a text shorter than that is one shorter window. Windows to
    train on are [1, training length].
    """

    scoring: tuple[Tensor, ...]
    calibration: tuple[Tensor, ...]
    length: int
    training: tuple[Tensor, ...] = ()


def token_windows(
    doing: str, documents: Sequence[str], program: Program, allowed: DimensionRange, training_tokens: int = 0
) -> TokenWindows:
    """Windows of `documents` for the language model `program`, which takes `allowed` tokens, read by its tokenizer.

    With about `training_tokens` to train on, as far as the text goes. Raises CompilerError when the documents are too
    short for a window in any part.
    """
    from compiler.tokenizer_folder import open_tokenizer

    assert program.tokenizer is not None
    limit = open_tokenizer(program.tokenizer, allowed)[1].maximum_tokens
    prefix, encode = text_tokenizer(program)
    length, training_length = (
        allowed.nearest(min(wanted, limit or wanted)) for wanted in (WINDOW_TOKENS, TRAINING_WINDOW_TOKENS)
    )
    weights = sum(weight.numel() for weight in program.weights().values())
    calibration, scoring = _halves(documents)
    training: Sequence[str] = ()
    if training_tokens:
        calibration, training = _for_training(calibration)
    found = TokenWindows(
        scoring=_windows(scoring, prefix, encode, length, _count(SCORING_WINDOWS, weights)),
        calibration=_windows(calibration, prefix, encode, length, _count(CALIBRATION_WINDOWS, weights)),
        length=length,
        training=_windows(
            _evenly(training, training_tokens // SHORT_DOCUMENT_TOKENS + 1),
            prefix,
            encode,
            training_length,
            -(-training_tokens // training_length),
            every_document=True,
        ),
    )
    if not found.scoring or not found.calibration or (training_tokens and not found.training):
        hint = "Give at least two documents of a few sentences, or one of several paragraphs."
        raise CompilerError(doing, "it holds too little text for a language model", hint)
    return found


def text_tokenizer(program: Program) -> tuple[list[int], Encode]:
    """What the tokenizer puts before a text, such as the token that begins a sequence, and token ids of bare text."""
    from compiler.runtime.text import read_tokenizer
    from compiler.tokenizer_folder import TOKENIZER_NAME

    assert program.tokenizer is not None
    tokenizer = read_tokenizer(program.tokenizer / TOKENIZER_NAME)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    framed = tokenizer.encode("a")
    special = list(framed.special_tokens_mask)
    prefix = list(framed.ids[: special.index(0)]) if 0 in special else []
    return prefix, lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _count(bounds: tuple[int, int], weight_count: int) -> int:
    """How many windows a model of that many weights is run on: a large one takes no longer for them."""
    least, most = bounds
    return min(most, max(least, round(most * TYPICAL_WEIGHTS / max(weight_count, 1))))


def _halves(documents: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Documents to calibrate and to score with."""
    written = [document.strip() for document in documents if document.strip()]
    if len(written) != 1:
        return written[::2], written[1::2]
    (whole,) = written
    first, second = _cut(whole, len(whole) // 2)
    return [first], [second]


def _for_training(documents: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Documents to calibrate and to train with, of those that do not score."""
    if len(documents) != 1:
        return documents[::CALIBRATION_TURN], [one for i, one in enumerate(documents) if i % CALIBRATION_TURN]
    (whole,) = documents
    first, second = _cut(whole, len(whole) // CALIBRATION_TURN)
    return [first], [second]


def _cut(whole: str, middle: int) -> tuple[str, str]:
    """A text in two, before character `middle`: between paragraphs, lines or words."""
    border = max(whole.rfind("\n\n", 0, middle), whole.rfind("\n", 0, middle) if "\n\n" not in whole else -1)
    border = border if border > middle // 2 else whole.rfind(" ", 0, middle)
    return whole[:border], whole[border:].strip()


def _windows(
    documents: Sequence[str],
    prefix: list[int],
    encode: Encode,
    length: int,
    limit: int,
    *,
    every_document: bool = False,
) -> tuple[Tensor, ...]:
    """At most `limit` windows [1, length], evenly from all documents, or from `limit` of them; one shorter one where
    they fill none.
    """
    if not documents:
        return ()
    fresh = length - len(prefix)
    share = max(fresh, -(-fresh * limit // len(documents))) * CHARACTERS_A_TOKEN
    read = documents if every_document else _evenly(documents, limit)
    passages = [_passage(document, share) for document in read]
    ids = encode("\n\n".join(passages))
    starts = list(range(0, len(ids) - fresh + 1, fresh)) or [0]
    windows = [torch.tensor([prefix + ids[start : start + fresh]]) for start in _evenly(starts, limit)]
    return tuple(window for window in windows if window.shape[1] >= LEAST_TOKENS)


def _passage(document: str, characters: int) -> str:
    """The middle of a document, in whole words, from the beginning of a line where there is one."""
    if len(document) <= characters:
        return document
    start = (len(document) - characters) // 2
    cut = document[start : start + characters]
    line, space = cut.find("\n", 0, characters // 2), cut.find(" ")
    return cut[(line if line >= 0 else space) + 1 : cut.rfind(" ") + 1]


def _evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spaced, in order."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)] if count else []
