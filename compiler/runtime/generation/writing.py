"""Prompts continued to the end, written out as the text comes, with what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compiler.errors import CompilerError
from compiler.runtime.generation.engine import Engine
from compiler.runtime.generation.request import Request
from compiler.runtime.generation.sampling import SamplingOptions

MOST_SLOTS = 16
"""More prompts than this take turns."""


def prompt_tokens(engine: Engine, prompt: str, system: str | None, raw: bool) -> list[int]:
    """The ids of a prompt: a message of a user, or the text itself where `raw` or without a chat template.

    Raises CompilerError for a system message that has no place.
    """
    if raw or not engine.codec.has_template:
        if system is not None:
            problem = "a plain prompt has no system message" if raw else "the model has no chat template"
            raise CompilerError("writing the prompt", problem, "Leave --system out, or write it into the prompt.")
        return engine.encode(prompt)
    messages = [{"role": "user", "content": prompt}]
    return engine.render_chat(messages if system is None else [{"role": "system", "content": system}, *messages])


def write_texts(
    engine: Engine, prompts: Sequence[Sequence[int]], options: SamplingOptions, write: Callable[[str], object]
) -> dict[str, Any]:
    """Continue all prompts side by side and give each text to `write` in turn: the document of what came.

    Raises CompilerError for a prompt that does not fit.
    """
    requests = [engine.submit(prompt, options) for prompt in prompts]
    texts = []
    for index, request in enumerate(requests):
        write("\n" if index else "")
        pieces = []
        for token in request:
            write(token.text)
            pieces.append(token.text)
        write("\n")
        texts.append("".join(pieces))
    return _document(engine, requests, texts)


def speeds_as_text(document: dict[str, Any]) -> str:
    """One line for people."""
    parts = []
    for name, words in (("decode", "tokens/s"), ("prefill", "tokens/s prefill")):
        speed = document[f"{name}_tokens_per_second"]
        if speed is not None:
            parts.append(f"{speed:.1f} {words}")
    first = min(text["seconds_to_first_token"] for text in document["texts"])
    counts = f"{document['prompt_tokens']} tokens of prompt, {document['new_tokens']} new"
    return f"{', '.join(parts)}, first token after {first * 1e3:.0f} ms ({counts})"


def _document(engine: Engine, requests: Sequence[Request], texts: Sequence[str]) -> dict[str, Any]:
    return {
        "model": engine.name,
        "texts": [
            {
                "text": text,
                "tokens": request.tokens,
                "prompt_tokens": len(request.prompt),
                "finish_reason": request.finish_reason,
                "seconds_to_first_token": request.timing.seconds_to_first_token,
            }
            for request, text in zip(requests, texts, strict=True)
        ],
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "new_tokens": sum(len(request.tokens) for request in requests),
        "prefill_tokens_per_second": engine.totals.prefill_speed,
        "decode_tokens_per_second": engine.totals.decode_speed,
    }
