"""Runs the command in this process, and one artifact that several tests look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compiler.cli import main

CHECKOUT = Path(__file__).parent.parent.parent
MODELS = Path(__file__).parent / "models.py"


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and both streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.stdout)


Command = Callable[..., Ran]


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


def start(*arguments: str | Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "compiler.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, cwd=cwd, text=True, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, **pipes)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier, compiled once by the eager backend."""
    folder = tmp_path_factory.mktemp("artifact") / "classifier"
    code = main([f"{MODELS}:classifier", "--backend", "eager", "-o", str(folder), "--quiet"])
    assert code == 0
    return folder
