"""How long a model takes to open and what memory it holds, each measured in a process of its own.

Run as `python -m compiler.runtime.footprint MODEL INPUTS.npz [THREADS]` it prints what it found as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError
from compiler.runtime.contenders import contender
from compiler.runtime.engines import first_line
from compiler.runtime.manifest import read_manifest
from compiler.runtime.tensor_file import read_tensors, write_tensors

TIME_LIMIT_SECONDS = 600


@dataclass(frozen=True)
class Footprint:
    """Of a fresh process: seconds to open the model and to run it the first time, and its resident memory afterwards.

    `resident_bytes` is the whole process; `interpreter_bytes` of that were there, with the runtime imported, before
    the model.
    """

    open_seconds: float
    first_run_seconds: float
    resident_bytes: int
    interpreter_bytes: int


def measure_footprint(path: Path, inputs: Mapping[str, np.ndarray[Any, Any]], threads: int | None) -> Footprint | None:
    """Open an artifact or .onnx file in a new process and run it once.

    None where the system tells no process its memory.
    """
    if resident_bytes() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="regraft-footprint-") as scratch:
        file = Path(scratch) / "inputs.npz"
        write_tensors(file, inputs)
        command = [sys.executable, "-m", "compiler.runtime.footprint", str(path.resolve()), str(file)]
        found = _output_of(f"measuring the memory of {path.name}", command + ([str(threads)] if threads else []))
    return Footprint(**json.loads(found))


def _output_of(doing: str, command: list[str]) -> str:
    """What a process with this one's import path prints. Raises CompilerError with its last words when it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    hint = "Is there enough memory for a second copy of the model?"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise CompilerError(doing, f"it did not finish in {TIME_LIMIT_SECONDS} seconds", hint) from None
    if done.returncode != 0:
        problem = (done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"])[-1]
        raise CompilerError(doing, problem, hint)
    return done.stdout


def resident_bytes() -> int | None:
    """The memory that this process holds, where Linux's /proc tells."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _measure(path: Path, inputs_file: Path, threads: int | None) -> dict[str, float]:
    inputs = read_tensors(inputs_file)
    side = contender(path)
    _import_engine(path)
    before = resident_bytes() or 0
    started = time.perf_counter()
    run = side.load(threads)
    opened = time.perf_counter()
    run(inputs)
    finished = time.perf_counter()
    return {
        "open_seconds": opened - started,
        "first_run_seconds": finished - opened,
        "resident_bytes": resident_bytes() or 0,
        "interpreter_bytes": before,
    }


def _import_engine(path: Path) -> None:
    """Load the engine's package beforehand: importing it is not the model's cost."""
    importlib.import_module(read_manifest(path).runtime.name if path.is_dir() else "onnxruntime")


if __name__ == "__main__":
    try:
        print(
            json.dumps(_measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None))
        )
    except CompilerError as error:
        sys.exit(first_line(error))
