"""`compile verify`: whether an artifact is whole and computes here what it computed where it was made."""

from __future__ import annotations

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, Folder, Shared, Threads
from compiler.errors import CompilerError


def verify(folder: Folder, *, threads: Threads = None, shared: Shared = SHARED) -> Answer:
    """Check every file of an artifact, and its numbers on this machine."""
    from compiler.cli.terminal import line
    from compiler.runtime.verify import verify as verify_artifact

    with shared.terminal.working(f"verifying {folder}"):
        report = verify_artifact(folder, threads)
    error = None
    try:
        report.require()
    except CompilerError as found:
        error = found
    return Answer(report.to_json(), shown=(line(report.text()),), error=error)
