"""Messages into the text of a prompt, by the jinja template that came with the model.

Templates come from strangers: they run in jinja's immutable sandbox and see plain strings, lists and dicts only.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from compiler.errors import CompilerError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]
"""`role` (system, user, assistant) and `content`."""


class ChatTemplate:
    """A compiled template. `tokens` are the special tokens that templates name, such as `bos_token`."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """Raises CompilerError where the source is no template, or jinja2 is not installed."""
        self._tokens = dict(tokens)
        self._template = _compiled(source)

    @classmethod
    def read(cls, file: Path, tokens: Mapping[str, str]) -> ChatTemplate:
        """The template in a file. Raises CompilerError."""
        return cls(file.read_text(encoding="utf-8"), tokens)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's answer to `messages` follows.

        Raises CompilerError where the template refuses them, as some do with a system message.
        """
        from jinja2 import TemplateError

        try:
            plain = json.loads(json.dumps([dict(message) for message in messages]))
            return self._template.render(
                messages=plain, tools=None, documents=None, add_generation_prompt=True, **self._tokens
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            problem = f"the model's template refuses these messages: {error}"
            raise CompilerError(
                "writing the prompt", problem, "Change the messages, or give a plain prompt (--raw)."
            ) from None


def _compiled(source: str) -> Template:
    doing = "reading the chat template"
    try:
        from jinja2 import TemplateSyntaxError, nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise CompilerError(
            doing, "jinja2 is not installed", "pip install jinja2, or give a plain prompt (--raw)"
        ) from None

    class GenerationBlock(Extension):
        """`{% generation %}` marks, for training, what the model wrote; here its body is plain template."""

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    GenerationBlock.tags = {"generation"}

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        problem = f"line {error.lineno}: {error.message}"
        raise CompilerError(doing, problem, "Give a plain prompt (--raw), or mend the model's template.") from None


def _raise_exception(message: str) -> Never:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), indent=indent)
