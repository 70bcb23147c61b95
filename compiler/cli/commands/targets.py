"""`compile targets`: what an artifact can be built for."""

from __future__ import annotations

from typing import Any

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, Shared


def targets(*, shared: Shared = SHARED) -> Answer:
    """List the targets, their architectures and the backends that build for them."""
    from compiler.cli.loading import open_registry
    from compiler.cli.terminal import table
    from compiler.target import TARGETS, Target

    with shared.terminal.working("reading plugins"):
        backends = open_registry(shared).backends()
    documents: list[dict[str, Any]] = [
        {
            "name": name,
            "description": family.description,
            "architectures": list(family.architectures),
            "backends": [backend for backend, cls in backends.items() if _builds_for(cls.targets, name)],
            "runs_here": Target(name).is_host,
        }
        for name, family in TARGETS.items()
    ]
    rows = [
        (
            one["name"],
            one["description"],
            ", ".join(one["architectures"]),
            ", ".join(one["backends"]) or "none yet",
            "yes" if one["runs_here"] else "no",
        )
        for one in documents
    ]
    return Answer(
        {"targets": documents}, (table(("target", "what it is", "architectures", "backends", "runs here"), rows),)
    )


def _builds_for(listed: tuple[str, ...], target: str) -> bool:
    return any(entry.partition(":")[0] == target for entry in listed)
