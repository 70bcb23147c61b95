"""The `compile` command. Importing this loads nothing but the standard library."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` (default: the process's arguments) and return its exit code.

    0: done; 1: the user's input or a budget refused; 2: usage; 70: our own bug; 130: interrupted. Where only the
    packages of the runtime are installed, the plain commands of `compiler.runtime` stand in.
    """
    gc.disable()  # nothing that starting up makes is garbage
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        import cyclopts  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        from compiler.runtime.__main__ import main as run_plain_command

        gc.enable()
        return run_plain_command(arguments)
    from compiler.cli.dispatch import dispatch

    return dispatch(arguments)
