"""Where work that takes minutes is kept: folders in the user's cache, each named by what its content came from.

    $REGRAFT_CACHE, else $XDG_CACHE_HOME/regraft, else ~/.cache/regraft  /  kind  /  digest

Files appear in one step, so that a process that is killed leaves whole ones. What nobody has used for a month goes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.errors import CompilerError

UNUSED_SECONDS = 30 * 24 * 3600
LOCK_NAME = "lock"


def cache_root() -> Path:
    """The folder that all kept work is below."""
    if given := os.environ.get("REGRAFT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regraft"


def kept_folder(kind: str, digest: str, root: Path | None = None) -> Path:
    """The folder for work of a kind, made where there is none; beside it, what was unused for long is removed.

    Raises CompilerError when it cannot be made.
    """
    parent = (cache_root() if root is None else root) / kind
    folder = parent / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        for other in parent.iterdir():
            if other.is_dir() and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        hint = "Name a folder that you may write with $REGRAFT_CACHE."
        raise CompilerError(f"keeping work in {folder}", f"the disk refuses: {error.strerror}", hint) from None
    return folder


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file that stands at `path` when it is whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def held_folder(doing: str, folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder of kept work. Raises CompilerError while one works in it."""
    with (folder / LOCK_NAME).open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            hint = "Wait until it has ended, or give this one a folder of its own."
            raise CompilerError(doing, f"another compile works in {folder}", hint) from None
        yield
