"""Mapped weights give their memory back, and come to no harm by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compiler.mapped_weights import release_mapped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux alone")
MEGABYTES = 64
IN_A_FRESH_PROCESS = """
import sys
from safetensors.torch import load_file
from compiler.mapped_weights import mapped_bytes, release_mapped
weight = load_file(sys.argv[1])["weight"]
before = mapped_bytes()
total = float(weight.sum())
read = mapped_bytes()
release_mapped([weight], **({"least_bytes": 0} if sys.argv[2] == "all" else {}))
print(read - before, mapped_bytes() - before, float(weight.sum()) == total)
"""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A file with one weight of 64 MB."""
    save_file({"weight": torch.arange(MEGABYTES * 2**18, dtype=torch.float32)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def released(stored: Path, how: str) -> list[str]:
    """Bytes mapped by reading the weight, what is still mapped after its release, and whether its sum is the same."""
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(stored), how]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_memory_goes_back_and_the_numbers_stay(stored: Path):
    read, kept, same = released(stored, "all")
    assert int(read) > 0.9 * MEGABYTES * 2**20
    assert int(kept) < 0.1 * MEGABYTES * 2**20
    assert same == "True"


def test_what_was_written_to_is_kept(stored: Path):
    weight = load_file(stored)["weight"]
    weight[5] = -7.0
    release_mapped([weight], least_bytes=0)
    assert float(weight[5]) == -7.0


def test_weights_in_memory_are_left_alone():
    weight = torch.ones(2**20)
    release_mapped([weight], least_bytes=0)
    assert float(weight.sum()) == 2**20


def test_small_amounts_are_not_worth_it(stored: Path):
    read, kept, same = released(stored, "large amounts")
    assert int(kept) > 0.9 * int(read)
    assert same == "True"
