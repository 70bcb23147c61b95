"""One node in ONNX Runtime beside the same node read, and beside what was read lowered again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from backend_cases import run_lowered
from onnx import helper, numpy_helper

from compiler.frontends.onnx_model.model_file import prepared
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.program import Program

Array = np.ndarray[Any, Any]
MICROSOFT = "com.microsoft"


class OneNode:
    """A model of one node. `inputs` in order, None where one is left out; those named in `stored` are initializers.

    Outputs are `y0`, `y1`, ...; `omitted` ones have no name. `dims` names dynamic dims: input index -> dim -> name.
    """

    def __init__(
        self,
        op: str,
        inputs: Sequence[Array | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = MICROSOFT,
        outputs: int = 1,
        omitted: Sequence[int] = (),
        stored: Sequence[int] = (),
        dims: Mapping[int, Mapping[int, str]] | None = None,
        opset: int = 21,
    ) -> None:
        self.arrays = {f"x{index}": one for index, one in enumerate(inputs) if one is not None}
        names = [f"x{index}" if one is not None else "" for index, one in enumerate(inputs)]
        results = ["" if index in omitted else f"y{index}" for index in range(outputs)]
        node = helper.make_node(op, names, results, domain=domain, **(attributes or {}))
        kept = {f"x{index}" for index in stored}
        given = {name: one for name, one in self.arrays.items() if name not in kept}
        named = {f"x{index}": one for index, one in (dims or {}).items()}
        graph = helper.make_graph(
            [node],
            "one node",
            [
                helper.make_tensor_value_info(
                    name,
                    helper.np_dtype_to_tensor_dtype(one.dtype),
                    [named.get(name, {}).get(index, size) for index, size in enumerate(one.shape)],
                )
                for name, one in given.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in results if name],
            [numpy_helper.from_array(self.arrays[name], name) for name in sorted(kept)],
        )
        versions = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
        self.proto = helper.make_model(graph, opset_imports=versions, ir_version=10)
        self.inputs = given

    def reference(self, inputs: Mapping[str, Array] | None = None) -> list[Array]:
        """What ONNX Runtime computes."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(self.proto.SerializeToString(), options)
        return [np.asarray(one) for one in session.run(None, dict(inputs or self.inputs))]

    def program(self, *, dynamic: bool = False) -> Program:
        """The model read: with the sizes of its inputs, or with the dims that are named."""
        model = prepared("reading a node", ir.serde.deserialize_model(self.proto))
        values = None if dynamic else {name: torch.from_numpy(one) for name, one in self.inputs.items()}
        return program_from_onnx(model, doing="reading a node", source="a node", values=values)


def assert_same_numbers(node: OneNode, *, rtol: float = 1e-4, atol: float = 1e-5, lowered: bool = True) -> Program:
    """Assert that reading the node, and lowering what was read, give what ONNX Runtime gives for it."""
    program = node.program()
    tensors = [torch.from_numpy(node.inputs[spec.name]) for spec in program.inputs]
    expected = node.reference()
    assert len(program.outputs) == len(expected)
    for found in [program.run(*tensors), *([run_lowered(program, tensors)] if lowered else [])]:
        for ours, theirs in zip(found, expected, strict=True):
            assert str(ours.dtype) == f"torch.{theirs.dtype}"
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=rtol, atol=atol)
    return program
