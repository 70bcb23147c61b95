"""Whether the files of an artifact are the ones that its manifest records."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import CompilerError
from compiler.runtime.manifest import MANIFEST_NAME, FileRecord, Manifest

COPY_AGAIN = "Copy the artifact again from where it was made; `compile verify` checks every file."


@dataclass(frozen=True)
class FileFinding:
    """One file that is not what the manifest says, and how it differs."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


def check_files(folder: Path, manifest: Manifest) -> tuple[FileFinding, ...]:
    """Read every file and compare it with the manifest: missing, changed and unrecorded files, by name."""
    findings = []
    for name, record in sorted(manifest.files.items()):
        problem = _size_problem(folder, name, record) or _content_problem(folder / name, record)
        if problem:
            findings.append(FileFinding(name, problem))
    known = {*manifest.files, MANIFEST_NAME}
    for name in sorted(present_files(folder) - known):
        findings.append(FileFinding(name, "is not a file of this artifact"))
    return tuple(findings)


def require_files(folder: Path, manifest: Manifest) -> None:
    """Raise CompilerError unless every file is there with its recorded size: cheap, done at every opening."""
    for name, record in sorted(manifest.files.items()):
        problem = _size_problem(folder, name, record)
        if problem:
            raise CompilerError(f"opening artifact {folder}", f"{name} {problem}", COPY_AGAIN)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_problem(folder: Path, name: str, record: FileRecord) -> str | None:
    path = folder
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            return "goes through a symbolic link"
    try:
        status = path.lstat()
    except OSError:
        return "is missing"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != record.bytes:
        return f"has {status.st_size:,} bytes and should have {record.bytes:,}"
    return None


def _content_problem(path: Path, record: FileRecord) -> str | None:
    try:
        digest = sha256_of(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest == record.sha256 else "does not have the sha256 that was recorded: its content was changed"


def present_files(folder: Path) -> set[str]:
    """The names of all files and links below a folder, with forward slashes."""
    found: set[str] = set()
    for base, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(base) / name).is_symlink()]
        found.update((Path(base) / name).relative_to(folder).as_posix() for name in (*files, *links))
    return found
