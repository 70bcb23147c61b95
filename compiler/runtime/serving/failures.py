"""What a client is told when its request is refused: an OpenAI error object and an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETRY_AFTER_SECONDS = 1


class RequestRefusedError(Exception):
    """A request that gets no completion.

    `status` is the HTTP status; `param` names the entry of the request at fault; `code` is a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """The error object as OpenAI's clients read it."""
        return {
            "error": {"message": self.message, "type": self._type(), "param": self.param, "code": self.code},
        }

    def _type(self) -> str:
        named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def too_many_waiting(limit: int) -> RequestRefusedError:
    """All slots work and the queue is full."""
    return RequestRefusedError(
        429,
        f"all slots are busy and {limit} more requests wait already; try again soon",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def stopping() -> RequestRefusedError:
    """The server has been told to stop."""
    return RequestRefusedError(503, "the server is stopping", code="server_stopping", headers={"Connection": "close"})


def engine_failed() -> RequestRefusedError:
    """Our own fault; the traceback is on the server's standard error."""
    return RequestRefusedError(500, "the server failed; its standard error says how", code="internal_error")
