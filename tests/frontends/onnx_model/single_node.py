"""Models of one node for tests: made, read, run in ONNX Runtime as they are and as our backend writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import helper, numpy_helper

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.program import Program
from compiler.target import Target

Array = np.ndarray[Any, Any]


def node_model(
    operator: str, inputs: Mapping[str, tuple[Any, Sequence[Any]] | Array | None], version: int, *,
    outputs: Sequence[str] = ("y",), **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """One node. An input is (numpy dtype, shape), an array that the model stores, or None where it is left out."""
    names = [name if given is not None else "" for name, given in inputs.items()]
    stored = [numpy_helper.from_array(given, name) for name, given in inputs.items() if isinstance(given, np.ndarray)]
    arguments = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(given[0])), given[1])
        for name, given in inputs.items()
        if isinstance(given, tuple)
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, names, list(outputs), **attributes)],
        "one_node",
        arguments,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def read(model: onnx.ModelProto) -> Program:
    """The model as a Program, named dims symbolic."""
    return program_from_onnx(ir.serde.deserialize_model(model), doing="reading", source="test")


def runtime_outputs(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Any]:
    """What ONNX Runtime gives for the model as it is."""
    return list(onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs))


def lowered_session(program: Program, folder: Path) -> onnxruntime.InferenceSession:
    """The program as our backend writes it."""
    return onnxruntime.InferenceSession(folder / OnnxRuntime().lower(program, Target("cpu"), folder).entry)


def assert_agrees(
    model: onnx.ModelProto, folder: Path, samples: Sequence[dict[str, Array]], expected: Any = runtime_outputs,
    tolerance: float = 1e-5,
) -> Program:  # fmt: skip
    """Both the Program and what is written of it give, for each sample, what `expected` gives. Returns the Program."""
    program = read(model)
    session = lowered_session(program, folder)
    for sample in samples:
        tensors = [torch.from_numpy(sample[spec.name]) for spec in program.inputs]
        found = program.run(*tensors), session.run(None, sample)
        for wanted, ours, theirs in zip(expected(model, sample), *found, strict=True):
            np.testing.assert_allclose(ours.numpy(), wanted, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(theirs, wanted, rtol=tolerance, atol=tolerance)
    return program
