"""The one exception for what the user can mend. Anything else that escapes is our bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompilerError(Exception):
    """What was being done, what went wrong and what to do about it.

    The command prints `doing: problem` and `Hint: ...` and exits with code 1.
    """

    def __init__(self, doing: str, problem: str, hint: str, node: str | None = None) -> None:
        super().__init__(doing, problem, hint, node)
        self.doing = doing
        self.problem = problem
        self.hint = hint
        self.node = node

    def __str__(self) -> str:
        at = f" (at {self.node})" if self.node else ""
        return f"{self.doing}: {self.problem}{at}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def nearest_hint(name: str, known: Iterable[str], otherwise: str) -> str:
    """`Did you mean ...?` for a near miss; `otherwise` when nothing is near."""
    found = nearest(name, known)
    return f"Did you mean {found!r}?" if found else otherwise
