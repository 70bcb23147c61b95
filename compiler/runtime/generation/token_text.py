"""Token ids into text as they come: no half characters, and never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextStream:
    """The text of one continuation. `stopped` says that a stop string came; it and what follows are left out."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        """`prompt` is what the continuation follows: some tokenizers write a space only between two tokens."""
        from tokenizers.decoders import DecodeStream

        self.stopped = False
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._stop = StopStrings(stop) if stop else None

    def add(self, token: int) -> str:
        """The text that is certain now that `token` has come; empty where a character or a stop string may go on."""
        if self.stopped:
            return ""
        text = self._stream.step(self._tokenizer, token) or ""
        if self._stop is None:
            return text
        text, self.stopped = self._stop.add(text)
        return text

    def end(self) -> str:
        """What was held back, once nothing follows. Bytes that make no whole character are dropped."""
        return "" if self._stop is None or self.stopped else self._stop.held


class StopStrings:
    """Looks for several strings in a text that comes in pieces. `held` is what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.held = ""
        self._stop = tuple(stop)

    def add(self, piece: str) -> tuple[str, bool]:
        """The text that belongs to no stop string, and whether one came."""
        text = self.held + piece
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.held = ""
            return text[: min(found)], True
        kept = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self.held = text[kept:]
        return text[:kept], False


def _overlap(text: str, stop: str) -> int:
    """The longest ending of `text`, in characters, that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
