"""One line for each request: when, what, its status, and the tokens it took and gave."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_PATH, LONGEST_OUTCOME = 120, 200


@dataclass
class RequestRecord:
    """What happened to one request. Times are of `time.perf_counter`."""

    started: float = field(default_factory=time.perf_counter)
    status: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None
    outcome: str = ""

    def count_token(self) -> None:
        """A token came just now."""
        self.last_token = time.perf_counter()
        if self.first_token is None:
            self.first_token = self.last_token
        self.completion_tokens += 1

    def line(self, method: str, path: str) -> str:
        """The line of the log, without the time of day."""
        status = "-" if self.status is None else str(self.status)
        parts = [f"{method} {path} {status} {time.perf_counter() - self.started:.2f} s"]
        if self.prompt_tokens is not None:
            parts.append(f"{self.prompt_tokens} + {self.completion_tokens} tokens")
        if self.first_token is not None:
            parts.append(f"first after {self.first_token - self.started:.2f} s")
        speed = self.tokens_per_second()
        if speed is not None:
            parts.append(f"{speed:.1f} tokens/s")
        if self.outcome:
            parts.append(printable(self.outcome)[:LONGEST_OUTCOME])
        return ", ".join(parts)

    def tokens_per_second(self) -> float | None:
        """The speed after the first token, or None before the second."""
        if self.first_token is None or self.last_token is None or self.last_token <= self.first_token:
            return None
        return (self.completion_tokens - 1) / (self.last_token - self.first_token)


class AccessLog:
    """Wraps an ASGI application; `scope["state"]["record"]` is where the application writes."""

    def __init__(self, app: ASGIApp, write: Callable[[str], None]) -> None:
        self._app = app
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and write its line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord()
        scope.setdefault("state", {})["record"] = record

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = quote(scope["path"])[:LONGEST_PATH]
            self._write(f"{time.strftime('%H:%M:%S')} {record.line(scope['method'], path)}")


def printable(text: str) -> str:
    """`text` with control characters written out: a client's words cannot drive the terminal or forge a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
