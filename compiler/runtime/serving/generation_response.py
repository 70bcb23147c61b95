"""One request from its prompt to its last token: admitted, run by the engine, streamed or given whole.

A client that goes away frees its slot at once, whatever it was waiting for.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from compiler.errors import CompilerError
from compiler.runtime.serving.completion_objects import DONE_EVENT, AnswerForm, Usage, event
from compiler.runtime.serving.failures import RequestRefusedError, engine_failed
from compiler.runtime.serving.request_schema import SamplingRequest
from compiler.runtime.serving.token_feed import TokenFeed

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from compiler.runtime.generation.engine import Engine
    from compiler.runtime.generation.request import Token
    from compiler.runtime.serving.access_log import RequestRecord
    from compiler.runtime.serving.admission import Admission

CLIENT_LEFT = "client left"
PROMPT_READER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
"""Makes token ids of all prompts: tokenizers remember ten thousand words in every thread that they are used in."""

STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class GenerationResponse(Response):
    """Runs `request` on the engine and answers in `form`. `prompt` makes the token ids, in another thread."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        request: SamplingRequest,
        prompt: Callable[[], Sequence[int]],
        form: AnswerForm,
        record: RequestRecord,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._admission = admission
        self._request = request
        self._prompt = prompt
        self._form = form
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client leaves first."""
        answer = asyncio.create_task(self._answer(scope, receive, send))
        departure = asyncio.create_task(_departure(receive))
        try:
            await asyncio.wait((answer, departure), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await answer
            else:
                self._record.outcome = CLIENT_LEFT
        finally:
            answer.cancel()
            departure.cancel()
            await asyncio.gather(answer, departure, return_exceptions=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        feed = await self._submitted()
        try:
            first = await self._next(feed)  # what fails before it still has a status of its own
            if self._request.stream:
                await self._stream(first, feed, send)
            else:
                await (await self._whole(first, feed))(scope, receive, send)
        finally:
            feed.close()

    async def _submitted(self) -> TokenFeed:
        """The request as the engine has it. Raises RequestRefusedError."""
        self._admission.enter()
        try:
            ids = await asyncio.get_running_loop().run_in_executor(PROMPT_READER, self._prompt)
            self._record.prompt_tokens = len(ids)
            options = replace(self._request.sampling_options(), max_tokens=self._token_limit(len(ids)))
            feed = TokenFeed(self._engine, ids, options, self._admission.ended)
        except CompilerError as error:
            self._admission.leave()
            raise RequestRefusedError(400, f"{error.problem}. {error.hint}") from None
        except BaseException:
            self._admission.leave()
            raise
        self._admission.submitted(feed)
        return feed

    def _token_limit(self, prompt_tokens: int) -> int | None:
        asked, context = self._request.token_limit(), self._engine.context_length
        if context is None:
            return self._request.tokens_unless_told if asked is None else asked
        room = context - prompt_tokens
        if room < max(1, asked or 0):
            more = f" and max_tokens ({asked})" if asked else ""
            message = f"the prompt's tokens ({prompt_tokens}){more} are too many for this model's context of {context}"
            raise RequestRefusedError(400, message, code="context_length_exceeded")
        return asked if asked is not None else min(room, self._request.tokens_unless_told or room)

    async def _next(self, feed: TokenFeed) -> Token:
        try:
            token = await feed.next()
        except Exception as error:
            raise _refusal(error) from None
        if token.id is not None:
            self._record.count_token()
        if token.finish_reason is not None:
            self._record.outcome = token.finish_reason
        return token

    async def _whole(self, token: Token, feed: TokenFeed) -> Response:
        texts = [token.text]
        while token.finish_reason is None:
            token = await self._next(feed)
            texts.append(token.text)
        document = self._form.whole("".join(texts), token.finish_reason, self._usage())
        return JSONResponse(document, headers={"x-request-id": self._form.id})

    async def _stream(self, first: Token, feed: TokenFeed, send: Send) -> None:
        headers = Headers({**STREAM_HEADERS, "x-request-id": self._form.id}).raw
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._chunks(first, feed):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except RequestRefusedError as refusal:
            self._record.outcome = refusal.message
            await send({"type": "http.response.body", "body": event(refusal.document()), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self, token: Token, feed: TokenFeed) -> AsyncIterator[bytes]:
        opening = self._form.opening()
        if opening is not None:
            yield event(opening)
        while True:
            if token.text:
                yield event(self._form.piece(token.text))
            if token.finish_reason is not None:
                break
            token = await self._next(feed)
        yield event(self._form.ending(token.finish_reason))
        if self._request.wants_usage():
            yield event(self._form.usage(self._usage()))
        yield DONE_EVENT

    def _usage(self) -> Usage:
        return Usage(self._record.prompt_tokens or 0, self._record.completion_tokens)


async def _departure(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(error: Exception) -> RequestRefusedError:
    """What the client is told; a failure of our own is shown where the server runs."""
    if isinstance(error, RequestRefusedError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return engine_failed()
