"""ONNX Runtime: Program -> ONNX -> kernels for processors, small boards and browsers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compiler.backend import Backend, Lowered
from compiler.errors import CompilerError
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.program import Program
    from compiler.target import Target

ONNX_RUNTIME_VERSION = "1.31"
ROUNDING_TOLERANCE = 1e-3
FLIPPED_CODE_TOLERANCE = 0.15
"""With activations quantized on the way, a difference of 1e-7 moves a value to the next of 256 codes, and later layers
carry that on: scaling one bias by 1 + 3e-7 moves all-MiniLM-L6-v2's output by 0.044 of its largest value in eager."""
ROUNDED_INPUT_TOLERANCE = 0.03
"""Products of dequantized weights that ONNX Runtime fuses to MatMulNBits round their inputs to 8 bits in blocks, each
by up to 1/254 of its block's largest. For the 36 products of six layers; such errors add like a random walk's steps, by
the root of how many there are. Products that the Program itself has in blocks are measured instead."""
ROUNDED_PRODUCTS = 36
FLIPPED_STATE_TOLERANCE = 0.05
"""With keys and values held as int8, rounding alone moves some to the next code, by 1/127 of the largest, and those of
later layers by more, whose inputs that moves: SmolLM2-135M's by up to 3 codes, 0.023, and its logits by 0.011."""
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
UNSERVED_TYPES = {
    "bfloat16": "convert the model to float32",
    "complex64": "there are no complex kernels",
    **dict.fromkeys(FLOAT8, "numpy has no such arrays; cast inside the model"),
}
"""Of inputs and outputs; what stands behind the colon says why."""


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """Writes `model.onnx`; weights go beside it where they pass `external_above_bytes`.

    None: protobuf's limit, and 16 MB for decoders, whose weights are mapped.
    """

    external_above_bytes: int | None = None

    name: ClassVar[str] = "onnx_runtime"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "linux-x86_64", "linux-aarch64", "wasm")
    kernels: ClassVar[Mapping[str, str]] = {
        "regraft::dynamic_quantized_linear": "DynamicQuantizeMatMul",
        "regraft::quantized_linear": "MatMulNBits",
        "regraft::quantized_embedding": "GatherBlockQuantized",
    }

    def refuses(self, program: Program, target: Target) -> str | None:
        """Targets without a processor's kernels, dtypes without kernels, operators that cannot be written."""
        from compiler.backends.onnx_runtime.translate import writable_program

        if target.name not in self.targets:
            return f"it serves {', '.join(self.targets)}, not {target.name}"
        for spec in (*program.inputs, *program.outputs):
            if spec.dtype in UNSERVED_TYPES:
                return f"{spec.name} is {spec.dtype}: {UNSERVED_TYPES[spec.dtype]}"
        try:
            writable_program(program)
        except CompilerError as error:
            return error.problem + (f" (at {error.node})" if error.node else "")
        return None

    def lower(self, program: Program, target: Target, folder: Path) -> Lowered:
        """Translate, rewrite for the kernels, write, and check with a session that real kernels run."""
        from compiler.backends.onnx_runtime.genai_config import (
            genai_obstacle,
            give_positions_a_default,
            write_genai_config,
        )
        from compiler.backends.onnx_runtime.graph_passes import GRAPH_PASSES
        from compiler.backends.onnx_runtime.graph_passes.packed_projections import pack_projections
        from compiler.backends.onnx_runtime.kernels import require_real_kernels, running_kernels
        from compiler.backends.onnx_runtime.model_file import MODEL_FILE, write_model
        from compiler.backends.onnx_runtime.translate import onnx_model

        model = onnx_model(program)
        changes = Counter(
            {
                graph_pass.__name__: sum(graph_pass(graph) for graph in (*model.graph.subgraphs(), model.graph))
                for graph_pass in GRAPH_PASSES
            }
        )
        obstacle = genai_obstacle(program) if program.states else None
        opens_in_genai = bool(program.states) and obstacle is None
        if opens_in_genai:
            give_positions_a_default(model.graph)
        files = write_model(model, folder, self._largest_single_file(program, target))
        if opens_in_genai:
            files += write_genai_config(program, model.graph, folder, MODEL_FILE)
        kernels = running_kernels(folder / MODEL_FILE)
        require_real_kernels(program, kernels, joined=changes[pack_projections.__name__])
        return Lowered(
            entry=MODEL_FILE,
            files=files,
            runtime="onnxruntime",
            requires={"onnxruntime": ONNX_RUNTIME_VERSION},
            kernels=kernels,
            tolerance=_tolerance(model.graph, kernels),
            rounds_inputs=_rounds_inputs(model.graph),
            notes=_notes(target, obstacle),
        )

    def _largest_single_file(self, program: Program, target: Target) -> int:
        """Bytes of weights up to which they stand in the model's own file. Browsers map no files."""
        from compiler.backends.onnx_runtime.model_file import MAPPED_ABOVE_BYTES, PROTOBUF_LIMIT_BYTES

        if self.external_above_bytes is not None:
            return self.external_above_bytes
        return MAPPED_ABOVE_BYTES if program.states and target.name != "wasm" else PROTOBUF_LIMIT_BYTES


def _tolerance(graph: ir.Graph, kernels: Mapping[str, int]) -> float:
    """By how activations are rounded: to codes of the model's, to codes of keys and values, by products that ONNX
    Runtime made out of dequantized weights, or not at all."""
    nodes = list(graph.all_nodes())
    written = Counter(node.op_type for node in nodes)
    if not {"DynamicQuantizeLinear", "QuantizeLinear"}.isdisjoint(written):
        return FLIPPED_CODE_TOLERANCE
    if (fused := kernels.get("MatMulNBits", 0) - written["MatMulNBits"]) > 0:
        return ROUNDED_INPUT_TOLERANCE * math.sqrt(max(1.0, fused / ROUNDED_PRODUCTS))
    held = [node for node in nodes if node.attributes.get_int("kv_cache_bit_width", 0)]
    return FLIPPED_STATE_TOLERANCE if held else ROUNDING_TOLERANCE


def _rounds_inputs(graph: ir.Graph) -> bool:
    """Whether products that stand in the graph as such round their inputs, as the Program can."""
    from compiler.ops.quantized_linear import INT8_COMPUTE

    return any(
        node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) == INT8_COMPUTE
        for node in graph.all_nodes()
    )


def _notes(target: Target, genai_obstacle: str | None) -> tuple[str, ...]:
    notes = () if genai_obstacle is None else (f"onnxruntime-genai cannot open it: {genai_obstacle}",)
    if target.name == "wasm":
        return (*notes, "open model.onnx with onnxruntime-web; the kernels counted are those of this machine's build")
    if not target.is_host:
        return (*notes, f"the kernels counted are those of this machine; ONNX Runtime for {target} chooses its own")
    return notes


@hookimpl
def register_backends() -> list[type[Backend]]:
    return [OnnxRuntime]
