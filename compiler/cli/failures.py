"""From an exception to what is printed and the exit code."""

from __future__ import annotations

import errno
import sys
import traceback

from compiler.errors import CompilerError

DONE, REFUSED, USAGE, BUG, INTERRUPTED, TERMINATED, BROKEN_PIPE = 0, 1, 2, 70, 130, 143, 141

OPTIONAL_PACKAGES = {
    "gguf": "gguf",
    "accelerate": "gguf",
    **dict.fromkeys(
        ("torch", "transformers", "safetensors", "onnx", "onnxscript", "onnx_ir", "tomli_w", "jinja2"), "compile"
    ),
    **dict.fromkeys(("starlette", "uvicorn"), "serve"),
}
"""Import name -> the extra of this distribution that brings it."""

BUG_NOTICE = (
    "This is a bug in regraft, not in your input. Please report it with the lines above and: compile doctor --json"
)


class UsageError(CompilerError):
    """A command line that says too little, too much or what cannot be: exit code 2."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__("reading the command line", problem, hint)


def exit_code(error: CompilerError) -> int:
    """2 for a command line that cannot be, 1 for everything else that the user can mend."""
    return USAGE if isinstance(error, UsageError) else REFUSED


def mendable(error: BaseException) -> CompilerError | None:
    """The error as something that the user can mend, or None when it is our bug."""
    if isinstance(error, CompilerError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] in OPTIONAL_PACKAGES:
        package = error.name.split(".")[0]
        hint = f"pip install 'regraft[{OPTIONAL_PACKAGES[package]}]'"
        return CompilerError("starting", f"{package} is not installed", hint)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return CompilerError("writing", f"the disk is full{where}", "Make room, or write to another disk with -o.")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return CompilerError("working", "memory ran out", "Close other programs, or compile on a larger machine.")
    return None


def print_error(error: CompilerError, *, hint: bool = True) -> None:
    """`doing: problem` and `Hint: ...`, each one line, on standard error."""
    from compiler.cli.terminal import printable

    print(printable(str(error)), file=sys.stderr)
    if hint and error.hint:
        print(f"Hint: {printable(error.hint)}", file=sys.stderr)


def print_bug(error: BaseException) -> None:
    """The traceback, and where it belongs."""
    traceback.print_exception(error, file=sys.stderr)
    print(BUG_NOTICE, file=sys.stderr)


def error_document(error: CompilerError) -> dict[str, dict[str, str | None]]:
    """What --json prints in place of an answer."""
    return {"error": {"doing": error.doing, "problem": error.problem, "hint": error.hint, "node": error.node}}
