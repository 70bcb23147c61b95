"""What a command gives back: one JSON document, the same for people, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compiler.errors import CompilerError


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    `document` is printed alone by --json. Otherwise `shown` goes to standard output and `summary` (tables, hints;
    silenced by --quiet) to standard error. A command that has an answer and still failed, such as `verify`, gives
    both `document` and `error`.
    """

    document: dict[str, Any]
    shown: tuple[RenderableType, ...] = ()
    summary: tuple[RenderableType, ...] = ()
    error: CompilerError | None = None
