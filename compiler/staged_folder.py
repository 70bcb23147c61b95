"""A folder that appears whole or not at all, and replaces an earlier one in one step.

The new content is written into a hidden sibling folder, flushed to the disk, and exchanged with the old folder by
renameat2 where the system has it. Elsewhere the old folder is renamed aside first; a process that dies between the
two renames leaves the old one beside its place, and the next writer puts it back. Staging folders are locked while
their process lives; the next writer of the same folder removes those that no process holds.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end of the block it stands at `folder`, and what stood there is gone.

    When the block raises, `folder` is as it was and the staging folder is removed. Raises OSError when the disk
    refuses.
    """
    folder = folder.resolve()
    made = _make_parents(folder.parent)
    staging, lock = None, None
    try:
        clean_up(folder)
        staging, lock = _locked_sibling(folder)
        yield staging
        _flush(staging)
        _swap_in(staging, folder)
        made = []
    finally:
        if staging is not None:
            _remove(staging)
        if lock is not None:
            os.close(lock)
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()


def clean_up(folder: Path) -> None:
    """Put back an old folder that a dead writer left aside, and remove the staging folders that dead writers left."""
    hidden = f".{_escaped(folder.name)}"
    for leftover in sorted(
        [*folder.parent.glob(f"{hidden}.regraft-old-*"), *folder.parent.glob(f"{hidden}.regraft-new-*")]
    ):
        with _locked(leftover) as owned:
            if owned and ".regraft-old-" in leftover.name and not folder.exists():
                leftover.rename(folder)
            elif owned:
                shutil.rmtree(leftover, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step. False where the system has no such call."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _swap_in(staging: Path, folder: Path) -> None:
    """Put `staging` at `folder`. What stood there is at `staging` afterwards, or gone."""
    if not folder.exists():
        staging.rename(folder)
    elif not exchange(staging, folder):
        aside = staging.with_name(staging.name.replace("regraft-new-", "regraft-old-"))
        folder.rename(aside)
        staging.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    _flush_one(folder.parent)


def _locked_sibling(folder: Path) -> tuple[Path, int]:
    """An empty folder beside `folder`, and the descriptor that locks it while this process lives."""
    while True:
        staging = folder.with_name(f".{folder.name}.regraft-new-{secrets.token_hex(4)}")
        staging.mkdir()
        descriptor = os.open(staging, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a cleaner came first and takes the folder away
            os.close(descriptor)
            continue
        except OSError:  # a file system without locks: nobody can clean there either
            return staging, descriptor
        if staging.exists():
            return staging, descriptor
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process could take the folder's lock; it is held during the block."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owned = True
    except OSError:
        owned = False
    try:
        yield owned
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder of ours, to the end even when Ctrl-C comes meanwhile."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _make_parents(folder: Path) -> list[Path]:
    """Make the missing folders down to `folder`; those made, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made = []
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        made.append(parent)
    return made


def _flush(folder: Path) -> None:
    """Have the disk hold every file and folder below `folder`, before anything points at them."""
    for base, _, files in os.walk(folder, topdown=False):
        for name in files:
            _flush_one(Path(base) / name)
        _flush_one(Path(base))


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _escaped(name: str) -> str:
    """A name as a glob pattern that matches only itself."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
