"""A whole compile, interrupted: killed, stopped with Ctrl-C, out of disk space. The old artifact stays whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compiler.compile_model import compile_model
from compiler.errors import CompilerError
from compiler.recipe import Recipe
from compiler.runtime.verify import verify

pytestmark = pytest.mark.slow

PROCESS_SECONDS = 120
FACTORY = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(16, 8), nn.GELU()), {"input": torch.randn(2, 16)}

def large():
    return nn.Sequential(nn.Linear(16, 100_000), nn.GELU()), {"input": torch.randn(2, 16)}
"""
COMPILES = """
    import sys
    from pathlib import Path
    from compiler.compile_model import compile_model
    from compiler.recipe import Recipe
    for seed in range(1, 1000):
        compile_model(Recipe(sys.argv[1], (), seed=seed), Path(sys.argv[2]))
        print("compiled", flush=True)
"""


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a model of 600 bytes of weights and one of 7 MB."""
    path = tmp_path_factory.mktemp("model") / "models.py"
    path.write_text(FACTORY, encoding="utf-8")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_kills_leave_an_artifact_that_verifies(factory: Path, tmp_path: Path) -> None:
    """One process compiles over and over to the same place; it is killed at moments spread over a compile."""
    target = tmp_path / "place" / "out"
    compile_model(Recipe(f"{factory}:small", ()), target)
    first = verify(target).manifest.digest
    command = [sys.executable, "-c", textwrap.dedent(COMPILES), f"{factory}:small", str(target)]
    moments = random.Random(0)
    seen = set()
    for stop in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"compiled\n"
        time.sleep(moments.uniform(0.1, 2.0))
        process.send_signal(stop)
        _, errors = process.communicate(timeout=PROCESS_SECONDS)
        assert process.returncode == -stop or b"KeyboardInterrupt" in errors, errors.decode()
        report = verify(target)
        assert report.passed, report.text()
        seen.add(report.manifest.digest)
    assert first not in seen
    compile_model(Recipe(f"{factory}:small", ()), target)
    assert list(target.parent.iterdir()) == [target], "what the dead left is cleaned"


def test_a_full_disk_leaves_the_old_artifact_and_nothing_else(factory: Path, small_disk: Path) -> None:
    target = small_disk / "out"
    compile_model(Recipe(f"{factory}:small", ()), target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for backend in ("onnx_runtime", "eager"):
        with pytest.raises(CompilerError, match=r"writing .*: the disk is full") as caught:
            compile_model(Recipe(f"{factory}:large", (), backend=backend), target)
        assert "Free some space" in caught.value.hint
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        assert os.listdir(small_disk) == ["out"]
