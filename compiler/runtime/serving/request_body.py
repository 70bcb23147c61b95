"""The body of a request, read up to a limit of bytes and of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.runtime.serving.failures import RequestRefusedError, stopping

if TYPE_CHECKING:
    from starlette.requests import Request

    from compiler.runtime.serving.admission import Admission

BODY_SECONDS = 30.0
"""A client that takes longer to send its body is refused."""

DISCARDED_BODIES = 16
"""So many times the limit is read and dropped, so that a client that sends before it reads sees the answer."""


async def read_body(request: Request, most_bytes: int, admission: Admission) -> bytes:
    """The whole body. Raises RequestRefusedError when it is too large, too slow or no JSON by its own account."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"the content type is {kind[:80]!r}; send it as: Content-Type: application/json"
        raise RequestRefusedError(415, message, code="unsupported_content_type")
    try:
        async with admission.patience(BODY_SECONDS):
            return await _read(request, most_bytes)
    except TimeoutError:
        if admission.stopping:
            raise stopping() from None
        message = f"the body did not come within {BODY_SECONDS:g} seconds"
        raise RequestRefusedError(408, message, headers={"Connection": "close"}) from None


async def _read(request: Request, most_bytes: int) -> bytes:
    stated = request.headers.get("content-length", "")
    too_large = stated.isdecimal() and int(stated) > most_bytes
    if too_large and "expect" in request.headers:
        raise _too_large(most_bytes)  # it asked before sending: nothing is on its way
    body, total = bytearray(), 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most_bytes:
            too_large = True
            body.clear()
        if not too_large:
            body += chunk
        if total > DISCARDED_BODIES * most_bytes:
            break
    if too_large:
        raise _too_large(most_bytes)
    return bytes(body)


def _too_large(most_bytes: int) -> RequestRefusedError:
    message = f"the body has more than {most_bytes} bytes, the most that this server reads (--max-body-bytes)"
    return RequestRefusedError(413, message, code="body_too_large", headers={"Connection": "close"})
