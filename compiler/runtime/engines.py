"""The engines that open a payload, by the name that the manifest gives.

Each is imported only when an artifact asks for it.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError, nearest_hint
from compiler.runtime.manifest import Manifest
from compiler.runtime.processor import missing_instructions

ENGINES: dict[str, str] = {
    "onnxruntime": "compiler.runtime.onnxruntime_engine",
    "torch": "compiler.runtime.torch_engine",
}
"""Engine name -> the module that defines `open_payload(entry, threads, options)`."""


class Engine(ABC):
    """An opened payload: arrays by input name in, arrays by output name out."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Evaluate once. Raises whatever the engine raises."""


def open_engine(folder: Path, manifest: Manifest, threads: int | None = None) -> Engine:
    """Open the payload with the engine it names. Raises CompilerError when this machine lacks what it needs."""
    doing = f"opening artifact {folder}"
    runtime = manifest.runtime
    if runtime.name not in ENGINES:
        raise CompilerError(
            doing, f"there is no engine {runtime.name!r}", nearest_hint(runtime.name, ENGINES, "Upgrade regraft.")
        )
    for package, least in runtime.requires.items():
        require_package(doing, package, least)
    missing = missing_instructions(runtime.instructions)
    if missing:
        problem = f"this processor lacks {', '.join(missing)}"
        raise CompilerError(
            doing, problem, f"It was built for {manifest.target}: compile it for this machine's --target."
        )
    engine = importlib.import_module(ENGINES[runtime.name])
    try:
        opened: Engine = engine.open_payload(folder / runtime.entry, manifest, threads)
    except (CompilerError, MemoryError):
        raise
    except Exception as error:
        hint = "Check the files with: compile verify"
        raise CompilerError(doing, f"{runtime.name} cannot open {runtime.entry}: {first_line(error)}", hint) from error
    return opened


def require_package(doing: str, package: str, least: str) -> str:
    """The version of an importable package. Raises CompilerError when it is absent or older than `least`."""
    try:
        found = str(importlib.import_module(package).__version__)
    except ImportError:
        raise CompilerError(
            doing, f"it needs {package}, which is not installed", f"pip install '{package}>={least}'"
        ) from None
    if version_numbers(found) < version_numbers(least):
        problem = f"it needs {package} {least} or later, and {found} is installed"
        raise CompilerError(doing, problem, f"pip install '{package}>={least}'")
    return found


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without trailing zeros: (1, 31) for `1.31.0+cpu`."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def first_line(error: BaseException) -> str:
    """What an engine's exception says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
