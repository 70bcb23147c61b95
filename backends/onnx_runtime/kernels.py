"""Which kernels really run: the operators that ONNX Runtime's own optimizer leaves, and that none of them simulates."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from compiler.errors import CompilerError

INTEGER_PRODUCTS = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
BLOCK_PRODUCTS = ("MatMulNBits",)
QUANTIZED_GATHER = "GatherBlockQuantized"
EXPECTED = {
    "regraft.dynamic_quantized_linear.default": INTEGER_PRODUCTS,
    "regraft.quantized_linear.default": BLOCK_PRODUCTS,
    "regraft.quantized_embedding.default": (QUANTIZED_GATHER,),
}
"""The kernels that each quantized operator of the dialect must have become."""


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
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def require_real_kernels(wanted: Counter[str], kernels: dict[str, int]) -> None:
    """Raise CompilerError unless each quantized operator in `wanted` runs as its integer kernel."""
    for operator, names in EXPECTED.items():
        found = sum(kernels.get(name, 0) for name in names)
        if found < wanted[operator]:
            problem = f"{wanted[operator] - found} of {wanted[operator]} {operator} did not become {' or '.join(names)}"
            hint = "The installed ONNX Runtime fuses another form: use the version that `compile doctor` names."
            raise CompilerError("checking the lowered kernels", problem, hint)
