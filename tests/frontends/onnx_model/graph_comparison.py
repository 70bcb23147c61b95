"""Graphs in ONNX's text form with symbolic dims: read once, then run and lowered at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from backend_cases import run_lowered
from onnx.reference import ReferenceEvaluator

from compiler.frontends.onnx_model.model_file import prepared
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.program import Program

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]


class TextGraph:
    """A graph such as `(float[B, 4] x) => (float[B, M] y) { y = Relu(x) }` at an opset version."""

    def __init__(self, text: str, opset: int = 21) -> None:
        header = f'<ir_version: 8, opset_import: ["": {opset}]> graph '
        self.proto = onnx.parser.parse_model(header + text)

    def program(self) -> Program:
        """The graph read, its named dims symbolic."""
        model = prepared("reading a graph", ir.serde.deserialize_model(self.proto))
        return program_from_onnx(model, doing="reading a graph", source="a graph")

    def inputs(self, sizes: Sizes, seed: int = 0) -> dict[str, Array]:
        """Normal numbers; integers are 0 to 2, booleans are true half of the time."""
        random = np.random.default_rng(seed)
        made: dict[str, Array] = {}
        for value in self.proto.graph.input:
            held = value.type.tensor_type
            shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in held.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(held.elem_type)
            floating = np.issubdtype(dtype, np.floating)
            numbers = random.standard_normal(shape) if floating else random.integers(0, 3, shape)
            made[value.name] = np.asarray(numbers > 1 if dtype.kind == "b" else numbers).astype(dtype)
        return made

    def reference(self, inputs: Mapping[str, Array]) -> list[Array]:
        """What ONNX's own evaluator computes."""
        return [np.asarray(one) for one in ReferenceEvaluator(self.proto).run(None, dict(inputs))]


class RuntimeGraph(TextGraph):
    """A graph whose reference is ONNX Runtime: ONNX's evaluator rounds the sizes of some pools in its own way."""

    def reference(self, inputs: Mapping[str, Array]) -> list[Array]:
        """What ONNX Runtime computes."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(self.proto.SerializeToString(), options)
        return [np.asarray(one) for one in session.run(None, dict(inputs))]


def assert_same_at(
    graph: TextGraph, every_sizes: Sequence[Sizes], *, rtol: float = 1e-5, atol: float = 1e-6
) -> Program:
    """Assert that the graph, read once, gives the reference's numbers at all sizes: as it is, and lowered."""
    program = graph.program()
    assert set(program.dimensions) == set(every_sizes[0]), program.notes
    for sizes in every_sizes:
        inputs = graph.inputs(sizes)
        expected = graph.reference(inputs)
        tensors = [torch.from_numpy(inputs[spec.name]) for spec in program.inputs]
        for found in (program.run(*tensors), run_lowered(program, tensors)):
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                assert (tuple(ours.shape), str(ours.dtype)) == (theirs.shape, f"torch.{theirs.dtype}"), sizes
                np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=rtol, atol=atol)
    return program
