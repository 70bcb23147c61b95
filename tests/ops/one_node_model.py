"""ONNX Runtime's own kernels as an independent reference: a model of a node or two, built and run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


def run_nodes(
    nodes: list[onnx.NodeProto], inputs: dict[str, Array], stored: dict[str, Array], outputs: list[str]
) -> list[Array]:
    """Run `nodes` on `inputs` with `stored` tensors as initializers."""
    graph = helper.make_graph(
        nodes,
        "reference",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(outputs, inputs)]
