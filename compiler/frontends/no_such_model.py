"""The error for a MODEL that no frontend accepts, with the hint that helps most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.errors import CompilerError, nearest
from compiler.frontends import Frontend


def no_such_model(model: str, frontends: Sequence[Frontend]) -> CompilerError:
    """Say whether the model is missing or only of an unknown kind, and name what is near or what is possible."""
    doing = f"reading model {model!r}"
    path = Path(model).expanduser()
    if path.is_dir():
        return CompilerError(doing, "the folder has no config.json", _in_folder(path, frontends))
    if path.is_file():
        problem = f"files that end in {path.suffix or 'nothing'!r} are not read"
        return CompilerError(doing, problem, _possible(frontends))
    return CompilerError(doing, "there is no such model", _near(path) or _possible(frontends))


def _in_folder(folder: Path, frontends: Sequence[Frontend]) -> str:
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__")))
    model = next((str(entry) for entry in found if any(frontend.accepts(str(entry)) for frontend in frontends)), None)
    if model is not None:
        return f"Did you mean {model!r}?"
    listed = ", ".join(entry.name for entry in found[:6]) or "nothing"
    return f"It holds: {listed}. Point to the folder that has config.json."


def _near(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"There is no folder {str(path.parent)!r} either."
    found = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    return f"Did you mean {str(path.parent / found)!r}?" if found else None


def _possible(frontends: Sequence[Frontend]) -> str:
    return f"A model is one of: {', '.join(frontend.form for frontend in frontends)}."
