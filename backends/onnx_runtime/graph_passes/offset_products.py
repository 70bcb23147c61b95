"""Zero points between the codes as a product of their own, with the sums of the input's blocks.

Before:  y = MatMulNBits(x, W, scales, z) with z in float, which lies between the codes
After:   y = MatMulNBits(x, W, scales) + MatMul(sums, (middle - z) scales), sums = ReduceSum(Reshape(x)) over each block
Before:  r + y, written as Sum(r, y), where y is used nowhere else
After:   Sum(r, MatMulNBits(x, W, scales), MatMul(sums, (middle - z) scales))
Exact:   x @ ((q - z) s).T = x @ ((q - middle) s).T + sums @ ((middle - z) s).T, to rounding.
Why:     given zero points in float, ONNX Runtime 1.31 dequantizes all weights at every call: 2 ms in place of 0.04 ms.
Leaves:  zero points that are computed, inputs whose rank is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import torch

from compiler.backends.onnx_runtime.graph_passes.scales_in_bytes import write_bytes
from compiler.backends.onnx_runtime.graph_passes.stored_weights import (
    is_product_in_blocks,
    register,
    register_lazily,
    stored,
)
from compiler.quantization.byte_scales import exact_bytes

WEIGHT, SCALES, ZERO_POINTS = 1, 2, 3
"""Inputs of MatMulNBits."""
ROUNDING = 1e-6
"""A minimum that was float16, or a byte, comes back from its zero point with float32's rounding."""


def write_offset_products(graph: ir.Graph) -> int:
    """Rewrite every such product; how many."""
    writer = _Writer(graph)
    found = [node for node in graph if _lies_between_codes(node)]
    for product in found:
        writer.rewrite(product)
    return len(found)


def _lies_between_codes(node: ir.Node) -> bool:
    if not is_product_in_blocks(node) or len(node.inputs) <= ZERO_POINTS:
        return False
    x, zero_points = node.inputs[0], node.inputs[ZERO_POINTS]
    if x is None or x.shape is None or zero_points is None:
        return False
    return bool(zero_points.dtype == ir.DataType.FLOAT)


class _Writer:
    """Adds nodes to a graph; products of one input share the sums of its blocks."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}

    def rewrite(self, product: ir.Node) -> None:
        """Take the zero points out of a product and add what they made of it."""
        offset = self._offset(product)
        inputs = [*product.inputs[:ZERO_POINTS], None, *product.inputs[ZERO_POINTS + 1 :]]
        while inputs[-1] is None:
            inputs.pop()
        result = product.outputs[0]
        symmetric = self._emit(product, "MatMulNBits", inputs, f"{product.name}.symmetric", product.attributes.values())
        users = result.uses()
        if len(users) == 1 and (total := users[0].node).op_type == "Sum" and len(total.inputs) == 2:
            added = [symmetric if value is result else value for value in total.inputs]
            replaced = self._emit(product, "Sum", [*added, offset], f"{total.name}.offset", before=total)
            _take_over(total.outputs[0], replaced)
            self._graph.remove(total, safe=True)
        else:
            _take_over(result, self._emit(product, "Add", [symmetric, offset], f"{product.name}.offset"))
        self._graph.remove(product, safe=True)

    def _offset(self, product: ir.Node) -> ir.Value:
        """sums [..., blocks] @ offsets [blocks, N]."""
        return self._emit(
            product, "MatMul", [self._block_sums(product), self._offsets(product)], f"{product.name}.offsets.product"
        )

    def _block_sums(self, product: ir.Node) -> ir.Value:
        """The sums [..., blocks] over each block of a product's input [..., K]."""
        x = product.inputs[0]
        assert x is not None
        assert x.shape is not None
        size, outer = product.attributes["block_size"].as_int(), len(x.shape) - 1
        if (x, size) in self._sums:
            return self._sums[x, size]
        inputs, name = product.attributes["K"].as_int(), f"{product.name}.sums"
        blocks = -(-inputs // size)
        padded = x
        if missing := blocks * size - inputs:
            width = self._integers(f"{name}.padding", [0] * (2 * outer + 1) + [missing])
            padded = self._emit(product, "Pad", [x, width], f"{name}.padded")
        shape = self._integers(f"{name}.shape", [0] * outer + [blocks, size])
        split = self._emit(product, "Reshape", [padded, shape], f"{name}.blocks")
        keep = ir.AttrInt64("keepdims", 0)
        sums = self._emit(product, "ReduceSum", [split, self._integers(f"{name}.axes", [-1])], name, [keep])
        self._sums[x, size] = sums
        return sums

    def _offsets(self, product: ir.Node) -> ir.Value:
        """(middle - z) s as [blocks, N]; from -z s, the least weight of a block, where fewer bytes hold that: then ONNX
        Runtime computes it once, when it opens the file.
        """
        scales, zero_points, name = product.inputs[SCALES], product.inputs[ZERO_POINTS], f"{product.name}.offsets"
        assert scales is not None
        assert zero_points is not None
        middle = np.float32(2 ** (product.attributes["bits"].as_int() - 1))
        least = self._least(product, name)
        if least is None:

            def load() -> ir.TensorProtocol:
                offsets = (middle - _numbers(zero_points)) * _numbers(scales)
                return ir.Tensor(np.ascontiguousarray(offsets.T), name=name)

            shape = _numbers(scales).T.shape
            return register_lazily(self._graph, name, ir.DataType.FLOAT, ir.Shape(shape), load)
        factor = register(self._graph, f"{name}.middle", np.array(middle))
        scaled = self._emit(product, "Mul", [scales, factor], f"{name}.scaled")
        raised = self._emit(product, "Add", [scaled, least], f"{name}.raised")
        return self._emit(product, "Transpose", [raised], name, [ir.AttrInt64s("perm", [1, 0])])

    def _least(self, product: ir.Node, name: str) -> ir.Value | None:
        """-z s [N, blocks] from float16, or from a byte each; None where neither holds it."""
        scales, zero_points = product.inputs[SCALES], product.inputs[ZERO_POINTS]
        assert scales is not None
        assert zero_points is not None
        least = -_numbers(zero_points) * _numbers(scales)
        with np.errstate(over="ignore"):
            halves = least.astype(np.float16)
        if np.allclose(halves.astype(np.float32), least, rtol=ROUNDING, atol=0.0):
            minima = register(self._graph, f"{name}.minima", halves)
            to = ir.AttrInt64("to", ir.DataType.FLOAT)
            return self._emit(product, "Cast", [minima], f"{name}.least", [to])
        held = exact_bytes(torch.from_numpy(least), ROUNDING)
        if held is None:
            return None
        return write_bytes(held, f"{name}.minima", self._graph, product)

    def _integers(self, name: str, numbers: list[int]) -> ir.Value:
        return register(self._graph, name, np.array(numbers, np.int64))

    def _emit(
        self,
        product: ir.Node,
        operator: str,
        inputs: list[ir.Value | None],
        name: str,
        attributes: Iterable[ir.Attr] = (),
        before: ir.Node | None = None,
    ) -> ir.Value:
        """The result of a new node, placed and labelled like the product that it comes from."""
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        domain = product.domain if operator == product.op_type else ""
        metadata = dict(product.metadata_props)
        node = ir.Node(domain, operator, inputs, list(attributes), outputs=[value], name=name, metadata_props=metadata)
        self._graph.insert_before(before or product, node)
        return value


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Let a new value stand for an old one, under its name."""
    new.shape, new.type, name = old.shape, old.type, old.name
    old.name = f"{name}.before"
    new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _numbers(value: ir.Value) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    tensor = stored(value).const_value
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float32)
