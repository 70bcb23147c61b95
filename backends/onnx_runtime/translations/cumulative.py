"""Running sums and products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.backends.onnx_runtime.translations.served_types import in_served_type, served_type
from compiler.backends.onnx_runtime.translations.shapes import shape_of, sliced, transposed

CUM_SUM_TYPES = (torch.float32, torch.float64, torch.int32, torch.int64)
"""What ONNX Runtime has kernels for."""


@translates("aten.cumsum.default")
def cumsum(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, *rest: Any) -> ir.Value:
    axis = w.constant(dim, np.int64)
    return in_served_type(
        w, result_type(node), CUM_SUM_TYPES, lambda computed: w.emit("CumSum", w.tensor(x, computed), axis)
    )


@translates("aten.cumprod.default")
def cumprod(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int, *rest: Any) -> ir.Value:
    """ONNX Runtime has no kernel: a known dim is multiplied with itself moved by 1, 2, 4, ...

    Along a symbolic dim, item i is the product of a row in which the items after i are 1.
    """
    dtype, shape = result_type(node), shape_of(node)
    if not shape:
        return w.tensor(x, dtype)
    dim %= len(shape)
    length = known_size(shape[dim])
    computed = served_type(dtype, CUM_SUM_TYPES)
    value, one = w.tensor(x, computed), w.tensor(1, computed)
    if length is None:
        value = _products_of_rows(w, value, one, dim, w.dim_of(node, dim), len(shape))
    else:
        shift = 1
        while shift < length:
            pads = [0] * (2 * len(shape))
            pads[dim] = shift
            moved = w.emit("Pad", sliced(w, value, dim, 0, length - shift), w.constant(pads, np.int64), one)
            value, shift = w.emit("Mul", value, moved), 2 * shift
    return value if computed == dtype else w.cast(value, dtype)


def _products_of_rows(
    w: GraphWriter, value: ir.Value, one: ir.Value, dim: int, length: ir.Value, rank: int
) -> ir.Value:
    order = [other for other in range(rank) if other != dim] + [dim]
    last = w.constant([-1], np.int64)
    first = w.constant([0], np.int64)
    zero, step = w.constant(0, np.int64), w.constant(1, np.int64)
    places = w.emit("Range", zero, w.emit("Squeeze", length, first), step)
    reached = w.emit("LessOrEqual", w.emit("Unsqueeze", places, first), w.emit("Unsqueeze", places, last))
    rows = w.emit("Unsqueeze", transposed(w, value, order), w.constant([-2], np.int64))  # [.., 1, length]
    products = w.emit("ReduceProd", w.emit("Where", reached, rows, one), last, keepdims=0)
    return transposed(w, products, [order.index(other) for other in range(rank)])
