"""What is returned to the system: clean pages of mapped files, which come back when they are read again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime.free_memory import return_free_memory

SIZE = 2**22

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def mapped(path: Path) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return np.memmap(path, np.uint8, "c")  # private, as ONNX Runtime maps weights


def test_pages_of_a_folder_s_files_go_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    inside, outside = mapped(folder / "weights"), mapped(tmp_path / "weights")
    total = int(inside.sum(dtype=np.int64))
    assert int(outside.sum(dtype=np.int64)) == total
    assert resident(folder / "weights") == resident(tmp_path / "weights") == SIZE
    return_free_memory(folder)
    assert (resident(folder / "weights"), resident(tmp_path / "weights")) == (0, SIZE)
    assert int(inside.sum(dtype=np.int64)) == total


def test_without_a_folder_and_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    return_free_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    return_free_memory(Path())
