"""Lowers a module or a Program and runs both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import Tensor, nn

from compiler.backend import Lowered
from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.frontends.torch_export import capture
from compiler.program import Program
from compiler.target import Target

CPU = Target.parse("cpu")


def captured(module: nn.Module, **inputs: Tensor) -> Program:
    """The Program of a module with dim 0 dynamic, and dim 1 of integer matrices too."""
    return capture(module.eval(), inputs, source="test")


class LoweredProgram:
    """A Program beside the ONNX Runtime session of what it was lowered to."""

    def __init__(self, program: Program, folder: Path, backend: OnnxRuntime | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.program = program
        self.folder = folder
        self.lowered: Lowered = (backend or OnnxRuntime()).lower(program, CPU, folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / self.lowered.entry), options)

    def run(self, *inputs: Tensor) -> list[np.ndarray[Any, Any]]:
        """The session's outputs, in the Program's order."""
        named = {spec.name: value.numpy() for spec, value in zip(self.program.inputs, inputs, strict=True)}
        outputs: list[np.ndarray[Any, Any]] = self.session.run([spec.name for spec in self.program.outputs], named)
        return outputs

    def largest_error(self, *inputs: Tensor) -> float:
        """The largest difference to eager over all outputs, shapes and dtypes being equal."""
        errors = [0.0]
        for expected, found in zip(self.program.run(*inputs), self.run(*inputs), strict=True):
            wanted = expected.numpy()
            assert wanted.shape == found.shape
            assert wanted.dtype == found.dtype
            if wanted.size:
                errors.append(float(np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max()))
        return max(errors)
