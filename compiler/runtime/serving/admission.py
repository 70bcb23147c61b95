"""How many requests may be here at once, and the end of all of them when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from compiler.runtime.serving.failures import stopping, too_many_waiting

if TYPE_CHECKING:
    from compiler.runtime.serving.token_feed import TokenFeed


class Admission:
    """Counts requests from their arrival to their last token. To be used in the event loop's thread alone."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.present = 0
        self.stopping = False
        self._feeds: set[TokenFeed] = set()
        self._reading: set[asyncio.Timeout] = set()

    def enter(self) -> None:
        """Count a request in. Raises RequestRefusedError when it is one too many, or the server is stopping."""
        if self.stopping:
            raise stopping()
        if self.present >= self.slots + self.max_waiting:
            raise too_many_waiting(self.max_waiting)
        self.present += 1

    def leave(self) -> None:
        """Count a request out that the engine never got."""
        self.present -= 1

    def submitted(self, feed: TokenFeed) -> None:
        """The engine has it now; `abort_all` will find it."""
        self._feeds.add(feed)

    def ended(self, feed: TokenFeed) -> None:
        """Count a request out that the engine is done with."""
        self._feeds.discard(feed)
        self.present -= 1

    @asynccontextmanager
    async def patience(self, seconds: float) -> AsyncIterator[None]:
        """Wait for a client no longer than so many seconds, nor than `abort_all`. Raises TimeoutError."""
        async with asyncio.timeout(seconds) as limit:
            self._reading.add(limit)
            try:
                yield
            finally:
                self._reading.discard(limit)

    def abort_all(self) -> None:
        """End every request that is still read or generated; their clients are told that the server stops."""
        for limit in list(self._reading):
            limit.reschedule(0)
        for feed in list(self._feeds):
            feed.abort(stopping())
