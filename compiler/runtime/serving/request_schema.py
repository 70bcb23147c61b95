"""What may stand in the body of a request. The dataclasses are the schema.

Entries that would change the text in a way that this server does not know are refused, never ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from compiler.errors import CompilerError, nearest_hint
from compiler.runtime.generation.sampling import LARGEST_SEED, SamplingOptions
from compiler.runtime.serving.failures import RequestRefusedError
from compiler.runtime.strict_json import MalformedJsonError, build, parse_json

Schema = TypeVar("Schema", bound="SamplingRequest")


@dataclass(frozen=True)
class StreamOptions:
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What both kinds of request share. Left out or null: the protocol's default."""

    tokens_unless_told: ClassVar[int | None] = None
    """The most tokens to write where the request does not say; None is to the end of the context."""

    model: str
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stream: bool = False
    stream_options: StreamOptions | None = None

    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end the text."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    def token_limit(self) -> int | None:
        """The most tokens to write, where the request says so."""
        return self.max_tokens

    def sampling_options(self) -> SamplingOptions:
        """The same in the engine's words. Raises CompilerError for values that cannot be."""
        return SamplingOptions(
            max_tokens=self.token_limit(),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            stop=self.stop_strings(),
            seed=None if self.seed is None else self.seed % SEEDS,
        )

    def wants_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


@dataclass(frozen=True)
class Message:
    """One message of a chat, in the words of the chat template."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class ChatRequest(SamplingRequest):
    """The body of POST /v1/chat/completions."""

    messages: tuple[Message, ...]
    max_completion_tokens: int | None = None

    def token_limit(self) -> int | None:
        """The most tokens to write, under either of its names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(SamplingRequest):
    """The body of POST /v1/completions. A prompt is a text or token ids."""

    tokens_unless_told: ClassVar[int | None] = 16

    prompt: str | tuple[int, ...]


MOST_STOPS = 4
SEEDS = LARGEST_SEED + 1

ONLY: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "verbosity": "medium",
}
"""Entries of the protocol that this server knows with one value alone: the one that changes nothing."""

IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls", "prompt_cache_key",
     "prompt_cache_options", "prompt_cache_retention")
)  # fmt: skip
"""Entries that say nothing about the text."""

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_chat_request(body: bytes) -> ChatRequest:
    """Check the body of a chat request. Raises RequestRefusedError."""
    document = _document(body)
    if "max_tokens" in document and "max_completion_tokens" in document:
        message = "max_tokens and max_completion_tokens are both given; they are two names of one limit"
        raise RequestRefusedError(400, message, "max_tokens")
    messages = document.get("messages")
    if isinstance(messages, list):
        document["messages"] = [_message(one, f"messages[{index}]") for index, one in enumerate(messages)]
        if not messages:
            raise RequestRefusedError(400, "messages: there is none", "messages")
    return _checked(ChatRequest, document)


def read_completion_request(body: bytes) -> CompletionRequest:
    """Check the body of a completion request. Raises RequestRefusedError."""
    document = _document(body)
    prompt = document.get("prompt")
    if isinstance(prompt, list) and any(isinstance(one, str | list) for one in prompt):
        if len(prompt) != 1:
            message = f"prompt: {len(prompt)} prompts are given; send one a request, several requests run side by side"
            raise RequestRefusedError(400, message, "prompt")
        document["prompt"] = prompt[0]
    return _checked(CompletionRequest, document)


def _document(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, without the entries that are null or say nothing."""
    try:
        document = parse_json(body.decode("utf-8"))
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise RequestRefusedError(400, "the body is not UTF-8 text") from None
    except UnicodeEncodeError:  # JSON can spell it, and no tokenizer takes it
        raise RequestRefusedError(400, "the body: a text has half a character in it (a lone surrogate)") from None
    except MalformedJsonError as problem:
        raise RequestRefusedError(400, f"the body: {problem}") from None
    except RecursionError:
        raise RequestRefusedError(400, "the body: it is nested too deeply") from None
    if not isinstance(document, dict):
        raise RequestRefusedError(400, "the body is no JSON object")
    return {name: value for name, value in document.items() if value is not None and name not in IGNORED}


def _message(value: Any, where: str) -> dict[str, Any]:
    """A message with its text in one piece."""
    if not isinstance(value, dict):
        raise RequestRefusedError(400, f"{where}: expected an object", where)
    given = {name: entry for name, entry in value.items() if entry is not None and name != "name"}
    for name in ("tool_calls", "function_call", "audio", "refusal", "annotations"):
        if not given.get(name):
            given.pop(name, None)
    role, content = given.get("role"), given.get("content")
    if isinstance(role, str):
        if role not in ROLES:
            message = f"{where}.role: {role[:40]!r} is none of {', '.join(ROLES)}"
            raise RequestRefusedError(400, message, f"{where}.role")
        given["role"] = ROLES[role]
    if isinstance(content, list):
        given["content"] = "".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    return given


def _part(value: Any, where: str) -> str:
    if not isinstance(value, dict) or value.get("type") != "text" or not isinstance(value.get("text"), str):
        raise RequestRefusedError(400, f"{where}: this model reads text alone", where, "unsupported_value")
    return str(value["text"])


def _checked(kind: type[Schema], document: dict[str, Any]) -> Schema:
    known = [field.name for field in fields(kind)]
    for name in list(document):
        if name in ONLY and name not in known:
            _require_neutral(name, document.pop(name))
        elif name not in known:
            hint = nearest_hint(name, known, "It would be wrong to ignore it.")
            raise RequestRefusedError(400, f"{name[:60]}: no such parameter is known here. {hint}", name[:60])
    try:
        request = build(kind, document)
    except MalformedJsonError as problem:
        where = str(problem).partition(":")[0]
        raise RequestRefusedError(400, str(problem), where) from None
    try:
        request.sampling_options()
    except CompilerError as error:
        param = error.problem.partition(" ")[0]
        raise RequestRefusedError(400, f"{error.problem}. {error.hint}", param, "invalid_value") from None
    if len(request.stop_strings()) > MOST_STOPS:
        raise RequestRefusedError(400, f"stop: more than {MOST_STOPS} strings", "stop", "invalid_value")
    if request.stream_options is not None and not request.stream:
        raise RequestRefusedError(400, "stream_options: only a stream has options", "stream_options")
    return request


def _require_neutral(name: str, value: Any) -> None:
    allowed = ONLY[name]
    if type(value) is not type(allowed) or value != allowed:
        message = f"{name}: only {json.dumps(allowed)} is supported"
        raise RequestRefusedError(400, message, name, "unsupported_value")
