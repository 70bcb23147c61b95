"""Which kernels really run: the operators that ONNX Runtime's own optimizer leaves, and that none of them simulates."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import CompilerError

if TYPE_CHECKING:
    import onnx

    from compiler.program import Program

REAL_KERNELS = {
    "regraft.dynamic_quantized_linear.default": ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    "regraft.quantized_linear.default": ("MatMulNBits",),
    "regraft.quantized_embedding.default": ("GatherBlockQuantized", "Gather"),
}
"""The kernels of which each quantized operator must have become one. Six-bit rows are gathered from an int8 table."""
JOINED_KERNELS = REAL_KERNELS["regraft.quantized_linear.default"]

ASK_TO_DEQUANTIZE = ("regraft.dequantize_linear.default", "regraft.fake_quantize_linear.default")
"""Operators that themselves dequantize at run time: a model that was quantized elsewhere may leave some unfused."""


def running_kernels(path: Path) -> dict[str, int]:
    """The operators of the graph that a session on this machine executes, counted by name, sorted by name."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="regraft-kernels-") as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            problem = f"ONNX Runtime rejects the lowered graph: {str(error).splitlines()[0]}"
            raise CompilerError(
                "lowering to ONNX", problem, "This is a defect of the lowering: report the model."
            ) from error
        graph = onnx.load(str(optimized), load_external_data=False).graph
    return dict(sorted(Counter(_operators(graph)).items()))


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    """The operators of a graph, and those of the graphs that its nodes run."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _operators(inner)


def require_real_kernels(program: Program, kernels: dict[str, int], joined: int = 0) -> None:
    """Raise CompilerError unless each quantized operator runs as an integer kernel, with nothing dequantized before.

    `joined` products were written as part of another one.
    """
    wanted = Counter(str(node.target) for node in program.graph.nodes if str(node.target) in REAL_KERNELS)
    hint = "The installed ONNX Runtime fuses other forms: use the version that `compile doctor` names."
    for operator, count in wanted.items():
        names = REAL_KERNELS[operator]
        found = sum(kernels.get(name, 0) for name in names) + joined * (names == JOINED_KERNELS)
        if found < count:
            problem = f"{count - found} of {count} {operator} did not become {' or '.join(names)}"
            raise CompilerError("checking the lowered kernels", problem, hint)
    asked = sum(str(node.target) in ASK_TO_DEQUANTIZE for node in program.graph.nodes)
    found = kernels.get("DequantizeLinear", 0)
    if found > asked:
        problem = f"{found - asked} weights are dequantized when the model runs"
        raise CompilerError("checking the lowered kernels", problem, hint)
