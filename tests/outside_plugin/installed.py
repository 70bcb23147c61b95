"""Installs the outside plugin for real, into a folder of its own, and runs commands that see it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).parent
CHECKOUT = PROJECT.parent.parent


@dataclass(frozen=True)
class InstalledPlugin:
    """The folder it is installed in, as pip left it."""

    folder: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def install(cls, scratch: Path) -> InstalledPlugin:
        """pip install, without dependencies (they are here) and without a build environment (hatchling is here)."""
        folder, log = scratch / "site", scratch / "hooks.log"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--no-cache-dir", "--target", str(folder), str(copied(scratch))]
        subprocess.run(command, check=True, capture_output=True, text=True)
        path = os.pathsep.join([str(folder), str(CHECKOUT)])
        return cls(folder, log, {**os.environ, "PYTHONPATH": path, "OUTSIDE_LOG": str(log)})

    def compile(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run `compile` in a process that sees the plugin."""
        return self.python("-m", "compiler.cli", *arguments, cwd=cwd)

    def python(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run Python in a process that sees the plugin."""
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        """What hooks were called with, in order."""
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


def copied(scratch: Path) -> Path:
    """A copy to build from, so that no build output lands in the checkout."""
    import shutil

    target = scratch / "source"
    shutil.copytree(PROJECT, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target
