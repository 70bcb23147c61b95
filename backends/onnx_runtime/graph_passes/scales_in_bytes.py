"""Scales of blocks that are whole parts of a number a row are stored as these parts, a byte each.

Before:  MatMulNBits(x, W, scales float32 [rows, blocks]), GatherBlockQuantized alike
After:   MatMulNBits(x, W, Cast(codes int8 [rows, blocks]) * Cast(rows float16 [rows, 1]) / 4096)
Exact:   all three are exact in float32; ONNX Runtime computes the scales once, when it opens the file.
Leaves:  scales that lie on no such grid (compiler.quantization.byte_scales), and those that float16 holds.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from compiler.backends.onnx_runtime.graph_passes.stored_weights import register
from compiler.quantization.byte_scales import UNIT, ByteScales, exact_bytes

SCALES = 2
"""Which input they are, of both operators."""
READERS = ("MatMulNBits", "GatherBlockQuantized")
UNIT_NAME = "byte_scale_unit"


def store_scales_in_bytes(graph: ir.Graph) -> int:
    """Rewrite all such scales; how many."""
    read = [node.inputs[SCALES] for node in graph if node.op_type in READERS and len(node.inputs) > SCALES]
    stored = dict.fromkeys(scales for scales in read if scales is not None and scales.is_initializer())
    return sum(_store(scales, graph) for scales in stored)


def _store(scales: ir.Value, graph: ir.Graph) -> bool:
    tensor = scales.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return False
    held = exact_bytes(torch.from_numpy(np.array(tensor.numpy())))
    if held is None:
        return False
    users = scales.uses()
    before = next(node for node in graph if any(node is user for user, _ in users))
    written = write_bytes(held, str(scales.name), graph, before)
    scales.replace_all_uses_with(written)
    graph.initializers.pop(str(scales.name))
    return True


def write_bytes(held: ByteScales, name: str, graph: ir.Graph, before: ir.Node) -> ir.Value:
    """The values of `held`, float32 [rows, blocks], computed from what is stored of them.

    What lies between is gone once the file is open, so its names are short and tell nothing.
    """
    codes = register(graph, f"{name}.codes", held.codes.numpy())
    rows = register(graph, f"{name}.rows", held.rows.numpy()[:, None])
    unit = graph.initializers.get(UNIT_NAME) or register(graph, UNIT_NAME, np.array(UNIT, np.float32))
    short = f"byte.{len(graph.initializers)}"

    def emit(operator: str, *inputs: ir.Value, step: str) -> ir.Value:
        attributes = [ir.AttrInt64("to", ir.DataType.FLOAT)] if operator == "Cast" else []
        value = ir.Value(name=f"{short}{step}", type=ir.TensorType(ir.DataType.FLOAT))
        graph.insert_before(before, ir.Node("", operator, inputs, attributes, outputs=[value], name=value.name))
        return value

    wide_rows, wide_codes = emit("Cast", rows, step="a"), emit("Cast", codes, step="b")
    return emit("Mul", wide_codes, emit("Mul", wide_rows, unit, step="c"), step="")
