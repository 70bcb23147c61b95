"""Folders of kept work: found again, whole, held by one process, and gone when nobody wants them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from compiler.errors import CompilerError
from compiler.kept_work import cache_root, held_folder, kept_folder, write_whole


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("REGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "regraft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "regraft"


def test_the_same_work_has_the_same_folder_and_old_work_goes(tmp_path: Path) -> None:
    first = kept_folder("kind", "one", tmp_path)
    (first / "file").write_text("work", encoding="utf-8")
    other = kept_folder("kind", "two", tmp_path)
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(other, (long_ago, long_ago))
    assert kept_folder("kind", "one", tmp_path) == first
    assert (first / "file").is_file()
    assert not other.exists()


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def fail(partial: Path) -> None:
        partial.write_text("half", encoding="utf-8")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, fail)
    assert not list(tmp_path.iterdir())
    write_whole(path, lambda partial: partial.write_text("whole", encoding="utf-8") and None)
    assert path.read_text(encoding="utf-8") == "whole"


def test_one_process_holds_a_folder(tmp_path: Path) -> None:
    again = held_folder("healing", tmp_path)
    with held_folder("healing", tmp_path), pytest.raises(CompilerError, match="another compile works in"), again:
        pass
    with held_folder("healing", tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "kind").write_text("a file", encoding="utf-8")
    with pytest.raises(CompilerError, match="the disk refuses") as caught:
        kept_folder("kind", "one", tmp_path)
    assert "REGRAFT_CACHE" in caught.value.hint
