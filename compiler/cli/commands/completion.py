"""`compile completion`: a script that teaches a shell to complete the command."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, Shared


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell to complete in.")],
    *,
    shared: Shared = SHARED,
) -> Answer:
    """Print a script that completes the command in a shell."""
    from rich.text import Text

    from compiler.cli.app import build_app

    script = build_app().generate_completion(prog_name="compile", shell=shell)
    return Answer({"shell": shell, "script": script}, (Text(script),))
