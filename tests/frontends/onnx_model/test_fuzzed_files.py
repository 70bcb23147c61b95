"""Two thousand mutated files: each gives a Program or one clear line, quickly and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzz_files.py")
COUNT = 2000
MOST_BYTES = 2 * 10**9


@pytest.mark.slow
def test_no_file_crashes_hangs_or_fills_memory() -> None:
    command = [sys.executable, str(FUZZER), "--count", str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["slow"] == []
    assert report["loaded"] + report["refused"] == COUNT
    assert report["loaded"] > COUNT // 20
    assert report["peak_bytes"] < MOST_BYTES
