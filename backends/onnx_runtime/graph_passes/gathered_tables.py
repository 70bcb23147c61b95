"""A table that is looked up and multiplied with is stored in the form that the look-up reads.

Before:  GatherBlockQuantized(Reshape(T [vocabulary, blocks, bytes]), ids, scales), MatMulNBits(x, T, scales)
After:   GatherBlockQuantized(T [vocabulary, blocks * bytes], ids, scales), MatMulNBits(x, Reshape(T), scales)
Exact:   the same bytes.
Why:     ONNX Runtime reshapes constants into copies when it opens the file. A product's copy is dropped once it is
         packed, a look-up's stays: 28 MB of SmolLM2-135M's embedding. T itself can stay in a file that is mapped.
Leaves:  tables that anything else reads.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from compiler.backends.onnx_runtime.graph_passes.stored_weights import register

TABLE = {"GatherBlockQuantized": 0, "MatMulNBits": 1}
"""Which input of an operator the table is."""


def store_tables_for_gather(graph: ir.Graph) -> int:
    """Rewrite every such table; how many."""
    return sum(_store(table, graph) for table in list(graph.initializers.values()))


def _store(table: ir.Value, graph: ir.Graph) -> bool:
    tensor = table.const_value
    reshapes = [node for node, index in table.uses() if node.op_type == "Reshape" and index == 0]
    products = [node for node, index in table.uses() if _reads_table(node, "MatMulNBits", index)]
    gathers = [use for node in reshapes for use in node.outputs[0].uses()]
    if tensor is None or not reshapes or not products or len(reshapes) + len(products) != len(table.uses()):
        return False
    if not all(_reads_table(node, "GatherBlockQuantized", index) for node, index in gathers):
        return False
    packed = ir.Shape(list(tensor.shape))
    stored = ir.Shape([int(packed[0]), math.prod(map(int, packed[1:]))])

    def load() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().reshape(stored.numpy()), name=tensor.name)

    table.const_value = ir.LazyTensor(load, tensor.dtype, stored, name=tensor.name)
    table.shape = stored
    for reshape in reshapes:
        reshape.outputs[0].replace_all_uses_with(table)
    graph.remove(reshapes, safe=True)
    shape = register(graph, f"{table.name}.packed_shape", np.array(packed.numpy(), np.int64))
    view = ir.Value(name=f"{table.name}.packed", shape=packed, type=ir.TensorType(tensor.dtype))
    graph.insert_before(products[0], ir.Node("", "Reshape", [table, shape], outputs=[view], name=view.name))
    for product in products:
        product.replace_input_with(TABLE["MatMulNBits"], view)
    return True


def _reads_table(node: ir.Node, op_type: str, index: int) -> bool:
    return node.op_type == op_type and index == TABLE[op_type]
