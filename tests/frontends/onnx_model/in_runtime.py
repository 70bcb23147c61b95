"""Reading a model from ONNX's text form, and comparing what became of it with ONNX Runtime on the original."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import torch

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.frontends.input_texts import stated_inputs
from compiler.frontends.onnx_model.model_file import prepared
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.program import Program
from compiler.target import Target

HEADER = '<ir_version: 9, opset_import: ["": 17]>\n'


def read(text: str | onnx.ModelProto, inputs: Sequence[str] = (), values: dict[str, Any] | None = None) -> Program:
    """The Program of a model; `inputs` are statements as on the command line, `values` example values."""
    proto = parsed(text)
    model = prepared("reading test", ir.serde.deserialize_model(proto))
    return program_from_onnx(
        model, doing="reading test", source="test", stated=stated_inputs(list(inputs)), values=values
    )


def parsed(text: str | onnx.ModelProto) -> onnx.ModelProto:
    """The model of a text, which may lack its header."""
    if isinstance(text, onnx.ModelProto):
        return text
    return onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)


def require_same(
    text: str | onnx.ModelProto, program: Program, *feeds: dict[str, Any], tolerance: float = 1e-5
) -> None:
    """Assert that the program, in eager and lowered, gives what ONNX Runtime gives for the original."""
    original = session(parsed(text).SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        OnnxRuntime().lower(program, Target("cpu"), Path(folder))
        lowered = session(str(Path(folder) / "model.onnx"))
    for feed in feeds:
        wanted = original.run(None, feed)
        eager = program.run(*(torch.from_numpy(np.asarray(feed[spec.name])) for spec in program.inputs))
        given = {spec.name: feed[spec.name] for spec in program.inputs}
        for expected, ours, written in zip(wanted, eager, lowered.run(None, given), strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(written, expected, rtol=tolerance, atol=tolerance)


def session(model: str | bytes) -> onnxruntime.InferenceSession:
    """A session with one thread that logs errors alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options)
