"""Tokens from the engine's thread into the event loop, one feed a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from compiler.runtime.generation.request import CANCELLED

if TYPE_CHECKING:
    from compiler.errors import CompilerError
    from compiler.runtime.generation.engine import Engine
    from compiler.runtime.generation.request import Token
    from compiler.runtime.generation.sampling import SamplingOptions


class TokenFeed:
    """The tokens of one request, to be awaited one by one.

    `ended` is called in the event loop once the engine is done with the request, whether or not its tokens have been
    read: a client that reads slowly holds no slot.
    """

    def __init__(
        self, engine: Engine, prompt: Sequence[int], options: SamplingOptions, ended: Callable[[TokenFeed], None]
    ) -> None:
        """Submit the request. Raises CompilerError where the engine refuses it."""
        self._ended = ended
        self._arrived: asyncio.Queue[Token | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._request = engine.submit(prompt, options, self._post)

    async def next(self) -> Token:
        """The next token. Raises what the engine raised, or what `abort` was given."""
        event = await self._arrived.get()
        if isinstance(event, Exception):
            raise event
        return event

    def abort(self, reason: Exception) -> None:
        """Free the slot, and raise `reason` in who reads."""
        self._request.cancel()
        self._arrived.put_nowait(reason)

    def close(self) -> None:
        """Free the slot, if it is still held."""
        self._request.cancel()

    def _post(self, event: Token | CompilerError) -> None:
        """Called in the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._arrive, event)

    def _arrive(self, event: Token | CompilerError) -> None:
        finish_reason = None if isinstance(event, Exception) else event.finish_reason
        if finish_reason != CANCELLED:
            self._arrived.put_nowait(event)
        if finish_reason is not None or isinstance(event, Exception):
            self._ended(self)
