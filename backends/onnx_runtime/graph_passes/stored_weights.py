"""Weights of an ONNX graph as graph passes see them: initializers, some of which a Cast widens when the file opens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir


def stored(value: ir.Value) -> ir.Value:
    """What is stored of a weight: it may be cast from a shorter type when the file is opened."""
    producer = value.producer()
    if producer is None or producer.op_type != "Cast" or producer.inputs[0] is None:
        return value
    return producer.inputs[0]


def is_product_in_blocks(node: ir.Node) -> bool:
    """Whether it is a product in blocks with weights that are stored."""
    return node.op_type == "MatMulNBits" and all(
        value is None or stored(value).is_initializer() for value in node.inputs[1:]
    )


def register(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    """A new initializer that holds an array."""
    return _registered(graph, ir.Tensor(array, name=name))


def register_lazily(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: ir.Shape, load: Callable[[], ir.TensorProtocol]
) -> ir.Value:
    """A new initializer whose tensor is made when the file is written."""
    return _registered(graph, ir.LazyTensor(load, dtype, shape, name=name))


def _registered(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(list(tensor.shape))
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
