"""Products of one input with weights of one make are a product with these weights under each other.

Before:  GroupQueryAttention(MatMulNBits(x, Wq), MatMulNBits(x, Wk), MatMulNBits(x, Wv), past, ...)
After:   GroupQueryAttention(MatMulNBits(x, [Wq; Wk; Wv]), none, none, past, ...), which takes them packed
Before:  a(MatMulNBits(x, W1)), b(MatMulNBits(x, W2)), c(MatMulNBits(x, W3) + b3), as of a hybrid and its gates
After:   a(y1), b(y2), c(y3) with y1, y2, y3 = Split(MatMulNBits(x, [W1; W2; W3]) + [0; 0; b3])
Exact:   the same products; measured at SmolLM2-135M's sizes, a decoding step takes 0.96 to 0.97 of the time with the
         projections of attention joined, and 0.97 with pairs whose zero points lie between the codes.
Leaves:  products that differ in bits, blocks or what else they have; other pairs, where splitting costs what joining
         saves (a step takes 0.99 to 1.04 of the time).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.backends.onnx_runtime.graph_passes.stored_weights import (
    is_product_in_blocks,
    register,
    register_lazily,
    stored,
)
from compiler.backends.onnx_runtime.graph_writer import MICROSOFT

PROJECTIONS = 3
"""How many products of one input are worth joining, at least: those of an attention, its first inputs."""
PAIR = 2
"""How many are where each has a product of offsets and an addition beside it (`offset_products`)."""
ZERO_POINTS = 3
"""Which input of MatMulNBits they are; in float where they lie between the codes."""
BIAS = 5
"""Which input of MatMulNBits is a bias. Products without one can join those that have it."""


def pack_projections(graph: ir.Graph) -> int:
    """Join what can be; how many products became a part of another one."""
    joined = sum(_pack(node, graph) for node in list(graph) if node.op_type == "GroupQueryAttention")
    alike: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in graph:
        if _can_join(node):
            alike.setdefault(_settings(node), []).append(node)
    return joined + sum(_split(found, graph) for found in alike.values() if _pays(found) and _join(found))


def _pack(attention: ir.Node, graph: ir.Graph) -> int:
    products = [value.producer() if value is not None else None for value in attention.inputs[:PROJECTIONS]]
    if not all(product is not None and _is_own(product, attention) for product in products):
        return 0
    found = [product for product in products if product is not None]
    if len({_settings(product) for product in found}) != 1 or not _join(found):
        return 0
    packed = _joined(found, graph, attention, f"{attention.name}.packed")
    for index, value in enumerate((packed, None, None)):
        attention.replace_input_with(index, value)
    graph.remove(found, safe=True)
    return len(found) - 1


def _split(found: Sequence[ir.Node], graph: ir.Graph) -> int:
    first = found[0]
    packed = _joined(found, graph, first, f"{first.name}.packed")
    sizes = register(graph, f"{first.name}.rows", np.array([_rows(product) for product in found], np.int64))
    parts = [ir.Value(name=f"{first.name}.part.{index}", type=first.outputs[0].type) for index in range(len(found))]
    axis = ir.AttrInt64("axis", -1)
    metadata = dict(first.metadata_props)
    split = ir.Node("", "Split", [packed, sizes], [axis], outputs=parts, name=f"{first.name}.parts",
                    metadata_props=metadata)  # fmt: skip
    graph.insert_before(first, split)
    for product, part in zip(found, parts, strict=True):
        part.shape = product.outputs[0].shape
        product.outputs[0].replace_all_uses_with(part)
    graph.remove(list(found), safe=True)
    return len(found) - 1


def _joined(found: Sequence[ir.Node], graph: ir.Graph, before: ir.Node, name: str) -> ir.Value:
    """The product with the weights of all, written before a node."""
    first = found[0]
    weights = [
        _stacked(graph, before, _inputs(found, index), f"{first.name}.packed.{index}") for index in range(1, BIAS + 1)
    ]
    while weights[-1] is None:
        weights.pop()
    attributes = {**first.attributes, "N": ir.AttrInt64("N", sum(_rows(product) for product in found))}
    packed = ir.Value(name=name, type=first.outputs[0].type)
    product = ir.Node(
        MICROSOFT,
        "MatMulNBits",
        [first.inputs[0], *weights],
        list(attributes.values()),
        outputs=[packed],
        name=f"{first.name}.packed",
        metadata_props=dict(first.metadata_props),
    )
    graph.insert_before(before, product)
    return packed


def _is_own(product: ir.Node, attention: ir.Node) -> bool:
    """Whether a product in blocks of weights is read by `attention` alone, and its weights are stored."""
    return _can_join(product) and [user for user, _ in product.outputs[0].uses()] == [attention]


def _can_join(node: ir.Node) -> bool:
    """Whether it is a product in blocks with weights that are stored, whose result stays in the graph."""
    return is_product_in_blocks(node) and not node.outputs[0].is_graph_output()


def _settings(product: ir.Node) -> tuple[object, ...]:
    """What products that become one have in common: the input, all but the rows, and the types of the weights."""
    shared = [(name, attribute.value) for name, attribute in sorted(product.attributes.items()) if name != "N"]
    types = [value is not None and stored(value).dtype for value in product.inputs[1:BIAS]]
    types += [False] * (BIAS - len(product.inputs))
    return (product.inputs[0], tuple(shared), tuple(types))


def _pays(found: Sequence[ir.Node]) -> bool:
    """Whether joining saves more than splitting costs."""
    zero_points = found[0].inputs[ZERO_POINTS] if len(found[0].inputs) > ZERO_POINTS else None
    between_codes = zero_points is not None and zero_points.dtype == ir.DataType.FLOAT
    return len(found) >= (PAIR if between_codes else PROJECTIONS)


def _join(found: Sequence[ir.Node]) -> bool:
    """Whether the biases of those that have one are stored in one type."""
    return len({stored(value).dtype for product in found if (value := _bias(product)) is not None}) <= 1


def _bias(product: ir.Node) -> ir.Value | None:
    return product.inputs[BIAS] if len(product.inputs) > BIAS else None


def _inputs(found: Sequence[ir.Node], index: int) -> list[ir.Value | None]:
    """One input of each product; where some have a bias, zeros for the others."""
    values = [product.inputs[index] if index < len(product.inputs) else None for product in found]
    given = [value for value in values if value is not None]
    if index != BIAS or not given:
        return values
    dtype = stored(given[0]).dtype
    assert dtype is not None
    return [
        ir.Value(const_value=ir.tensor(np.zeros(_rows(product), dtype.numpy()))) if value is None else value
        for value, product in zip(values, found, strict=True)
    ]


def _rows(product: ir.Node) -> int:
    return int(product.attributes["N"].as_int())


def _stacked(graph: ir.Graph, before: ir.Node, values: Sequence[ir.Value | None], name: str) -> ir.Value | None:
    """The stored tensors under each other, put together when the file is written, and cast as they were."""
    present = [value for value in values if value is not None]
    casts = [value.producer() for value in present if stored(value) is not value]
    if not casts or casts[0] is None:
        return _concatenated(graph, present, name)
    narrow = _concatenated(graph, [stored(value) for value in present], f"{name}.stored")
    type_ = ir.TensorType(ir.DataType(casts[0].attributes["to"].as_int()))
    cast = ir.Value(name=name, shape=narrow.shape if narrow else None, type=type_)
    attributes = list(casts[0].attributes.values())
    graph.insert_before(before, ir.Node("", "Cast", [narrow], attributes, outputs=[cast], name=name))
    return cast


def _concatenated(graph: ir.Graph, values: Sequence[ir.Value], name: str) -> ir.Value | None:
    tensors = [value.const_value for value in values]
    if not tensors:
        return None
    known = [tensor for tensor in tensors if tensor is not None]
    shape = ir.Shape((sum(int(tensor.shape[0]) for tensor in known), *known[0].shape[1:]))

    def load() -> ir.TensorProtocol:
        return ir.Tensor(np.concatenate([tensor.numpy() for tensor in known]), name=name)

    return register_lazily(graph, name, known[0].dtype, shape, load)
