"""The objects of the protocol that answer a request: whole, in chunks, and the list of models."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

DONE_EVENT = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt and tokens written."""

    prompt_tokens: int
    completion_tokens: int

    def document(self) -> dict[str, int]:
        """The object of the protocol."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class AnswerForm(Protocol):
    """How an answer is written down: as a chat or as a completion."""

    @property
    def id(self) -> str:
        """The name of this answer."""

    def whole(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""

    def opening(self) -> dict[str, Any] | None:
        """The chunk before the first text, if there is one."""

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with text."""

    def ending(self, finish_reason: str) -> dict[str, Any]:
        """The chunk that says why the text ends."""

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk with the count of tokens."""


@dataclass(frozen=True)
class ChatForm:
    """Answers of /v1/chat/completions. With `counted`, chunks announce that usage comes last."""

    model: str
    counted: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage.document()}

    def opening(self) -> dict[str, Any] | None:
        """The chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk({"content": text}, None)

    def ending(self, finish_reason: str) -> dict[str, Any]:
        """The chunk that says why the text ends."""
        return self._chunk({}, finish_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk with the count of tokens, and no choice."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage.document()}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.counted else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True)
class CompletionForm:
    """Answers of /v1/completions; chunks and the whole are of one make."""

    model: str
    counted: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        return {**self._head(), "choices": [self._choice(text, finish_reason)], "usage": usage.document()}

    def opening(self) -> dict[str, Any] | None:
        """Nothing: the text begins at once."""
        return None

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk(text, None)

    def ending(self, finish_reason: str) -> dict[str, Any]:
        """The chunk that says why the text ends."""
        return self._chunk("", finish_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk with the count of tokens, and no choice."""
        return {**self._head(), "choices": [], "usage": usage.document()}

    def _chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        chunk = {**self._head(), "choices": [self._choice(text, finish_reason)]}
        return {**chunk, "usage": None} if self.counted else chunk

    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}


def model_object(name: str, created: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "regraft"}


def event(document: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
