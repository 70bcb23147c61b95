"""`compile backends`: what can write an artifact."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, Shared

if TYPE_CHECKING:
    from compiler.backend import Backend


def backends(*, shared: Shared = SHARED) -> Answer:
    """List the backends, their targets and the passes they run unless told otherwise."""
    from compiler.cli.loading import open_registry
    from compiler.cli.terminal import table

    with shared.terminal.working("reading plugins"):
        known = open_registry(shared).backends()
    documents: list[dict[str, Any]] = [
        {
            "name": name,
            "targets": list(cls.targets),
            "default_passes": {target: _default_passes(cls, target) for target in cls.targets},
            "summary": inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").partition("\n")[0],
        }
        for name, cls in known.items()
    ]
    rows = []
    for one in documents:
        passes = dict.fromkeys(one["default_passes"].values())
        rows.append((one["name"], ", ".join(one["targets"]), " or ".join(passes), one["summary"]))
    shown = table(("backend", "targets", "passes unless told otherwise", "what it writes"), rows)
    return Answer({"backends": documents}, (shown,))


def _default_passes(cls: type[Backend], target: str) -> str:
    from compiler.target import Target

    return str(cls().default_pipeline(Target.parse(target)))
