"""What can be timed: an artifact, an .onnx file, or anything that a caller knows how to load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError
from compiler.runtime.manifest import read_manifest

Arrays = dict[str, np.ndarray[Any, Any]]
Run = Callable[[Arrays], object]


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    `load(threads)` opens it and returns what is timed; `path` is measured in a process of its own.
    """

    name: str
    load: Callable[[int | None], Run]
    path: Path | None = None
    bytes: int | None = None


def contender(path: Path) -> Contender:
    """The side that a path names: an artifact's folder or an .onnx file."""
    if path.is_dir():
        return artifact_contender(path)
    if path.suffix == ".onnx" and path.is_file():
        return onnx_contender(path)
    hint = "Name an artifact's folder or an .onnx file; a torch model needs `compile bench` where torch is installed."
    raise CompilerError("choosing what to bench against", f"{path} is no artifact and no .onnx file", hint)


def artifact_contender(folder: Path) -> Contender:
    """An artifact as a side, named after its folder."""
    from compiler.runtime.session import Session

    manifest = read_manifest(folder)
    size = sum(record.bytes for record in manifest.files.values())
    return Contender(folder.resolve().name, lambda threads: Session.open(folder, threads).run, folder, size)


def onnx_contender(path: Path) -> Contender:
    """An .onnx file as a side, in ONNX Runtime as it comes."""

    def load(threads: int | None) -> Run:
        from compiler.runtime.onnxruntime_engine import open_onnx

        engine = open_onnx(path, threads)
        wanted = [name for name, _, _ in engine.input_specs]
        return lambda inputs: engine.run(chosen_inputs(path.name, wanted, inputs))

    return Contender(path.name, load, path, path.stat().st_size)


def chosen_inputs(name: str, wanted: Sequence[str], inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
    """Those of `inputs` that a model asks for by name. Raises CompilerError for one that there is not."""
    for asked in wanted:
        if asked not in inputs:
            hint = f"Both sides run on the same inputs: {', '.join(inputs)}."
            raise CompilerError(f"benching {name}", f"it wants an input {asked!r}", hint)
    return {asked: inputs[asked] for asked in wanted}
