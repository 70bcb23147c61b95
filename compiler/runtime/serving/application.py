"""The ASGI application: its routes, and what is refused before any of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compiler.runtime.serving.access_log import AccessLog
from compiler.runtime.serving.completion_objects import ChatForm, CompletionForm, model_object
from compiler.runtime.serving.failures import RequestRefusedError, engine_failed
from compiler.runtime.serving.generation_response import GenerationResponse
from compiler.runtime.serving.request_body import read_body
from compiler.runtime.serving.request_schema import read_chat_request, read_completion_request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from compiler.runtime.generation.engine import Engine
    from compiler.runtime.serving.access_rules import AccessRules
    from compiler.runtime.serving.admission import Admission


class Service:
    """The endpoints, over one engine that knows one model."""

    def __init__(self, engine: Engine, admission: Admission, max_body_bytes: int) -> None:
        self._engine = engine
        self._admission = admission
        self._max_body_bytes = max_body_bytes
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """Every path."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
        ]

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = read_chat_request(await read_body(request, self._max_body_bytes, self._admission))
        self._require_model(asked.model)
        messages = [{"role": message.role, "content": message.content} for message in asked.messages]
        form = ChatForm(self._engine.name, asked.wants_usage())
        record = request.state.record
        return GenerationResponse(
            self._engine, self._admission, asked, lambda: self._engine.render_chat(messages), form, record
        )

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = read_completion_request(await read_body(request, self._max_body_bytes, self._admission))
        self._require_model(asked.model)
        prompt = asked.prompt
        form = CompletionForm(self._engine.name, asked.wants_usage())
        record = request.state.record
        return GenerationResponse(
            self._engine,
            self._admission,
            asked,
            lambda: self._engine.encode(prompt) if isinstance(prompt, str) else list(prompt),
            form,
            record,
        )

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [model_object(self._engine.name, self._created)]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._require_model(request.path_params["name"])
        return JSONResponse(model_object(self._engine.name, self._created))

    async def health(self, request: Request) -> Response:
        """GET /health: whether requests are taken, and how many are here."""
        present, slots = self._admission.present, self._admission.slots
        document = {
            "status": "stopping" if self._admission.stopping else "ok",
            "model": self._engine.name,
            "slots": slots,
            "active": min(present, slots),
            "waiting": max(0, present - slots),
        }
        return JSONResponse(document, 503 if self._admission.stopping else 200)

    def _require_model(self, name: str) -> None:
        if name != self._engine.name:
            message = f"there is no model {name[:80]!r} here; this server has {self._engine.name!r}"
            raise RequestRefusedError(404, message, "model", "model_not_found")


class Gate:
    """Wraps an ASGI application; asks `rules` about each request."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        app = self._app
        if scope["type"] == "http":
            try:
                self._rules.check(scope["path"], Headers(scope=scope))
            except RequestRefusedError as refusal:
                app = _refused(refusal, scope)
        await app(scope, receive, send)


def build_application(service: Service, rules: AccessRules, log: Callable[[str], None]) -> ASGIApp:
    """The whole: log, gate, routes, and an OpenAI error object for everything that goes wrong."""
    handlers: dict[Any, Any] = {
        RequestRefusedError: lambda request, refusal: _refused(refusal, request.scope),
        HTTPException: lambda request, error: _refused(_routing_refusal(request, error), request.scope),
        Exception: lambda request, error: _refused(engine_failed(), request.scope),
    }
    app = Starlette(routes=service.routes(), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return AccessLog(Gate(app, rules), log)


def _refused(refusal: RequestRefusedError, scope: Scope) -> JSONResponse:
    scope["state"]["record"].outcome = refusal.message
    return JSONResponse(refusal.document(), refusal.status, refusal.headers)


def _routing_refusal(request: Request, error: HTTPException) -> RequestRefusedError:
    path = request.url.path[:80]
    message = f"there is no {path}; see /v1/models"
    if error.status_code == 405:
        message = f"{path} does not take {request.method}"
    return RequestRefusedError(error.status_code, message, headers=error.headers)
