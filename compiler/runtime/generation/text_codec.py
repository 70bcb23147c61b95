"""Text into token ids and back, as an artifact's tokenizer and chat template do it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from compiler.errors import CompilerError
from compiler.runtime.generation.chat_template import ChatTemplate, Message
from compiler.runtime.generation.token_text import TextStream
from compiler.runtime.manifest import Manifest
from compiler.runtime.text import read_tokenizer

PROMPT_CONTEXT = 8
"""How many tokens of a prompt the decoding of its continuation looks back at."""


class TextCodec:
    """The tokenizer of the artifact in `folder`, without padding and limits."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Raises CompilerError where the artifact has no tokenizer, or it cannot be read."""
        if manifest.text is None or manifest.generation is None:
            hint = "Compile the model from a folder that has its tokenizer."
            raise CompilerError(f"writing text with {manifest.name}", "this artifact has no tokenizer", hint)
        self.tokenizer = read_tokenizer(folder / manifest.text.tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._folder = folder
        self._generation = manifest.generation

    @property
    def has_template(self) -> bool:
        """Whether the model came with a chat template."""
        return self._generation.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """The ids of a plain prompt, with the special tokens that the tokenizer puts around a text."""
        ids: list[int] = self.tokenizer.encode(text).ids
        beginning = self._generation.beginning_token
        return ids if ids or beginning is None else [beginning]

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the prompt that the answer to `messages` follows.

        Raises CompilerError where the model has no chat template, or it refuses them.
        """
        ids: list[int] = self.tokenizer.encode(self._template.render(messages), add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def stream(self, prompt: Sequence[int], stop: Sequence[str] = ()) -> TextStream:
        """What turns the continuation of a prompt into text, token by token."""
        return TextStream(self.tokenizer, prompt[-PROMPT_CONTEXT:], stop)

    @cached_property
    def _template(self) -> ChatTemplate:
        name = self._generation.chat_template
        if name is None:
            raise CompilerError("writing the prompt", "the model has no chat template", "Give a plain prompt.")
        return ChatTemplate.read(self._folder / name, self._generation.template_tokens)
