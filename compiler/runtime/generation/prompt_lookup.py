"""Drafts from the text itself: what followed the last few tokens when they came before.

Source: Saxena 2023, prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (3, 2)
"""How many last tokens are looked up, longest first."""


class PromptLookup:
    """An index of a growing text: run of tokens -> the place after its latest occurrence."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token. Only runs that something follows are indexed."""
        for length in LENGTHS:
            if len(self._tokens) >= length:
                self._after[tuple(self._tokens[-length:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """Up to `count` tokens that may follow; none where the last tokens are new."""
        for length in LENGTHS:
            place = self._after.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._tokens[place : place + count]
        return []
