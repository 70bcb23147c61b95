"""Payloads of the eager backend: an exported program that torch runs. The one engine that needs torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.runtime.engines import Engine
from compiler.runtime.manifest import Manifest


class TorchEngine(Engine):
    """The module of a torch.export.ExportedProgram, called with tensors in the order of the manifest."""

    def __init__(self, module: Callable[..., Any], input_names: list[str], output_names: list[str]) -> None:
        self._module = module
        self._input_names = input_names
        self._output_names = output_names

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        torch = importlib.import_module("torch")
        with torch.no_grad():
            values = self._module(*(torch.tensor(inputs[name]) for name in self._input_names))
        return {name: value.numpy() for name, value in zip(self._output_names, values, strict=True)}


def open_payload(entry: Path, manifest: Manifest, threads: int | None) -> Engine:
    """Load the .pt2. Raises CompilerError when loading it could run code that its maker put there."""
    torch = importlib.import_module("torch")
    _define_operators()
    importlib.import_module("compiler.frontends.pt2_safety").check_archive(f"opening {entry}", entry)
    if threads is not None:
        torch.set_num_threads(threads)
    module = torch.export.load(entry).module(check_guards=False)
    return TorchEngine(module, [spec.name for spec in manifest.inputs], [spec.name for spec in manifest.outputs])


def _define_operators() -> None:
    """Make the `regraft::` operators known, which the program may call: each is defined by importing its module."""
    operators = importlib.import_module("compiler.ops")
    for module in pkgutil.iter_modules(operators.__path__, "compiler.ops."):
        importlib.import_module(module.name)
