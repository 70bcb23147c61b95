"""Which token comes next: penalties, temperature and the cuts of the distribution, then one draw.

The order is that of transformers: penalties, temperature, top-k, top-p, min-p. Logits are float32 [vocabulary].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.errors import CompilerError

Logits = np.ndarray[Any, np.dtype[np.float32]]

FIRST_CANDIDATES = 256
"""top-p sorts this many tokens first, and all of the vocabulary only where they do not hold enough."""

LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingOptions:
    """How a text is continued. `temperature` 0 always takes the likeliest token.

    `max_tokens` None goes on to the end of the context. `top_k` None, `top_p` 1 and `min_p` 0 cut nothing; the
    penalties 1, 0 and 0 change nothing. `repetition_penalty` counts the prompt's tokens too, `frequency_penalty` and
    `presence_penalty` only new ones. A text of `stop` ends the continuation and is not part of it. Raises CompilerError
    for values that cannot be.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "1 or more")
        _require("temperature", self.temperature, _inside(self.temperature, 0, 100), "from 0 to 100")
        _require("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more")
        _require("top_p", self.top_p, _inside(self.top_p, 0, 1) and self.top_p > 0, "above 0 and at most 1")
        _require("min_p", self.min_p, _inside(self.min_p, 0, 1), "from 0 to 1")
        penalty = self.repetition_penalty
        _require("repetition_penalty", penalty, _inside(penalty, 0, 100) and penalty > 0, "above 0 and at most 100")
        for name in ("frequency_penalty", "presence_penalty"):
            _require(name, getattr(self, name), _inside(getattr(self, name), -2, 2), "from -2 to 2")
        _require("stop", self.stop, all(self.stop), "texts of at least one character")
        _require("seed", self.seed, self.seed is None or 0 <= self.seed <= LARGEST_SEED, f"from 0 to {LARGEST_SEED}")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


class Sampler:
    """The next tokens of one text. Two with the same options (and a seed), prompt and logits give the same tokens."""

    def __init__(self, options: SamplingOptions, prompt: Sequence[int]) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = dict.fromkeys(prompt) if options.repetition_penalty != 1 else None
        counts = options.frequency_penalty != 0 or options.presence_penalty != 0
        self._counts: Counter[int] | None = Counter() if counts else None

    def next(self, logits: Logits) -> int:
        """The token that follows; the sampler remembers it. `logits` are left as they are."""
        scores = self._penalized(logits)
        token = int(scores.argmax()) if self._options.greedy else self._drawn(scores)
        if self._seen is not None:
            self._seen[token] = None
        if self._counts is not None:
            self._counts[token] += 1
        return token

    def _penalized(self, logits: Logits) -> Logits:
        scores = logits
        if self._seen:
            scores = repetition_penalized(scores, list(self._seen), self._options.repetition_penalty)
        if self._counts:
            scores = scores.copy()
            for token, count in self._counts.items():
                scores[token] -= self._options.frequency_penalty * count + self._options.presence_penalty
        return scores

    def _drawn(self, scores: Logits) -> int:
        tokens, probabilities = distribution(scores, self._options)
        cumulative = probabilities.cumsum()
        index = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(tokens[min(index, len(tokens) - 1)])


def repetition_penalized(logits: Logits, seen: Sequence[int], penalty: float) -> Logits:
    """Logits with those of `seen` tokens divided by the penalty where positive, multiplied where negative.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1.
    """
    scores = logits.copy()
    known = scores[seen]
    scores[seen] = np.where(known > 0, known / penalty, known * penalty)
    return scores


def distribution(
    logits: Logits, options: SamplingOptions
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Token ids that may be drawn, likeliest first where they were cut by top-k or top-p, and their probabilities."""
    scores = logits.astype(np.float64) / options.temperature
    tokens = np.arange(len(scores))
    if options.top_k is not None and options.top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.partition(scores, -options.top_k)[-options.top_k])
    weights = np.exp(scores[tokens] - scores.max())
    weights /= weights.sum()
    if options.top_p < 1:
        kept = _likeliest(weights, options.top_p)
        tokens, weights = tokens[kept], weights[kept]
    if options.min_p > 0:
        kept = np.flatnonzero(weights >= options.min_p * weights.max())
        tokens, weights = tokens[kept], weights[kept]
    return tokens, weights / weights.sum()


def _likeliest(weights: np.ndarray[Any, Any], top_p: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The fewest indices, likeliest first, whose probabilities reach `top_p` together."""
    for count in (min(FIRST_CANDIDATES, len(weights)), len(weights)):
        candidates = np.argpartition(weights, -count)[-count:]
        ordered = candidates[np.argsort(-weights[candidates], kind="stable")]
        cumulative = weights[ordered].cumsum()
        if cumulative[-1] >= top_p:
            break
    return ordered[: int(np.searchsorted(cumulative, top_p, side="left")) + 1]


def _inside(value: float, least: float, most: float) -> bool:
    return math.isfinite(value) and least <= value <= most


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise CompilerError("reading the sampling options", f"{name} is {value!r}", f"It should be {allowed}.")
