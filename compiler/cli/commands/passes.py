"""`compile passes`: what passes there are, or one of them with its options."""

from __future__ import annotations

import inspect
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, Shared
from compiler.errors import CompilerError, nearest_hint

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compiler.rewriting import Pass


def passes(
    name: Annotated[str | None, Parameter(help="One pass or pipeline, with all it says of itself.")] = None,
    *,
    shared: Shared = SHARED,
) -> Answer:
    """List the passes and pipelines, or show one with its options."""
    from compiler.cli.loading import open_registry

    with shared.terminal.working("reading plugins"):
        registry = open_registry(shared)
        known, pipelines = registry.passes(), registry.pipelines()
    if name is None:
        return _listing(known, pipelines)
    if name in known:
        return _one_pass(known[name])
    if name in pipelines:
        return _one_pipeline(name, pipelines[name])
    hint = nearest_hint(name, [*known, *pipelines], "See: compile passes")
    raise CompilerError("showing a pass", f"there is no pass {name!r}", hint)


def _listing(known: dict[str, type[Pass]], pipelines: dict[str, str]) -> Answer:
    from compiler.cli.terminal import line, table

    documents = [_document(cls) for cls in known.values()]
    rows = [
        (one["name"], one["make"], ", ".join(option["name"] for option in one["options"]), one["summary"])
        for one in documents
    ]
    shown: list[RenderableType] = [table(("pass", "make", "options", "what it does"), rows)]
    if pipelines:
        shown.append(table(("pipeline", "stands for"), pipelines.items()))
    hint = line("Hint: compile passes NAME shows one with its options and their defaults.")
    return Answer({"passes": documents, "pipelines": pipelines}, tuple(shown), (hint,))


def _one_pass(cls: type[Pass]) -> Answer:
    from compiler.cli.terminal import line, table

    document = _document(cls)
    rows = [(o["name"], o["type"], _default_text(o), o["help"]) for o in document["options"]]
    options: RenderableType = (
        table(("option", "type", "default", "meaning"), rows) if rows else line("It has no options.")
    )
    return Answer(document, (line(document["documentation"]), line(""), options, line(f"From {document['file']}")))


def _one_pipeline(name: str, text: str) -> Answer:
    from compiler.cli.terminal import line

    return Answer({"name": name, "passes": text}, (line(f"{name} stands for: {text}"),))


def _document(cls: type[Pass]) -> dict[str, Any]:
    from compiler.options import options_of
    from compiler.pipeline import make_of

    documentation = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "")
    return {
        "name": cls.name,
        "make": make_of(cls),
        "family": cls.family,
        "summary": documentation.partition("\n")[0],
        "documentation": documentation,
        "file": Path(inspect.getfile(cls)).name,
        "options": [
            {
                "name": option.name,
                "type": option.type_name,
                "required": option.default is MISSING,
                "default": None if option.default is MISSING else _plain(option.default),
                "help": option.help,
            }
            for option in options_of(cls)
        ],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _default_text(option: dict[str, Any]) -> str:
    if option["required"]:
        return "needed"
    default = option["default"]
    if isinstance(default, list):
        return "+".join(map(str, default)) or "none"
    return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
