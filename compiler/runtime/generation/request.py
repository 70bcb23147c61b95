"""One text on its way: what was asked, the queue of its tokens, and how long they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from compiler.errors import CompilerError
from compiler.runtime.generation.sampling import SamplingOptions

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"
"""Why a text ends: by itself or at a stop string; at its longest; by the one who asked."""


@dataclass(frozen=True)
class Token:
    """A token that came, and the text that is certain since (often, but not always, that of this token).

    The last of a text has the `finish_reason`. `id` is None where no token came, as at a cancellation.
    """

    id: int | None
    text: str
    finish_reason: str | None = None


@dataclass
class Timing:
    """When things happened, in seconds of time.perf_counter()."""

    submitted: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    finished: float | None = None

    @property
    def seconds_to_first_token(self) -> float | None:
        """From the submission on, waiting included; None before it."""
        return None if self.first_token is None else self.first_token - self.submitted


class Request:
    """A text that an engine continues; iterating gives its Tokens as they come.

    `tokens` are the ids so far, `finish_reason` is None while it runs. An exception of the engine is raised by the
    iterator. Where a `listener` was given, it is called with every Token in the engine's thread, and with the
    exception; then there is nothing to iterate over.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: SamplingOptions,
        listener: Callable[[Token | CompilerError], None] | None = None,
    ) -> None:
        self.prompt = tuple(prompt)
        self.options = options
        self.tokens: list[int] = []
        self.timing = Timing()
        self.finish_reason: str | None = None
        self.cancelled = False
        self._events: SimpleQueue[Token | CompilerError] = SimpleQueue()
        self._deliver = listener or self._events.put

    def cancel(self) -> None:
        """Stop, from any thread; the engine frees its place before its next step."""
        self.cancelled = True

    def __iter__(self) -> Iterator[Token]:
        while True:
            event = self._events.get()
            if isinstance(event, CompilerError):
                raise event
            yield event
            if event.finish_reason is not None:
                return

    def text(self) -> str:
        """Wait for the end: the whole text."""
        return "".join(token.text for token in self)

    def deliver(self, token: Token) -> None:
        """For the engine: hand a token over."""
        if token.finish_reason is not None:
            self.finish_reason = token.finish_reason
            self.timing.finished = time.perf_counter()
        self._hand_over(token)

    def fail(self, error: CompilerError) -> None:
        """For the engine: end with an exception."""
        self.finish_reason = "error"
        self.timing.finished = time.perf_counter()
        self._hand_over(error)

    def _hand_over(self, event: Token | CompilerError) -> None:
        try:
            self._deliver(event)
        except Exception:  # whoever listened is gone; the other texts go on
            self.cancelled = True
