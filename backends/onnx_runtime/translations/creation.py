"""Operators that make tensors from sizes and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import shape_of

LARGEST_CONSTANT = 1024
"""Elements up to which a tensor of one number is stored."""


def filled(w: GraphWriter, shape: Sequence[Any], fill: Any, dtype: torch.dtype) -> ir.Value:
    """A tensor of one number: a constant where the shape is known and small, otherwise an expanded scalar."""
    known = [size for size in map(known_size, shape) if size is not None]
    if isinstance(fill, fx.Node):
        scalar = w.tensor(fill, dtype)
    elif len(known) == len(shape) and math.prod(known) <= LARGEST_CONSTANT:
        return w.constant(torch.full(known, fill, dtype=dtype).numpy())
    else:
        scalar = w.constant(torch.tensor(fill, dtype=dtype).numpy())
    return w.emit("Expand", scalar, w.sizes(list(shape)))


@translates(
    "aten.zeros.default",
    "aten.zeros_like.default",
    "aten.new_zeros.default",
    "aten.empty.memory_format",
    "aten.empty_like.default",
)
def zeros(w: GraphWriter, node: fx.Node, *rest: Any) -> ir.Value:
    return filled(w, shape_of(node), 0, node.meta["val"].dtype)


@translates("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default")
def ones(w: GraphWriter, node: fx.Node, *rest: Any) -> ir.Value:
    return filled(w, shape_of(node), 1, node.meta["val"].dtype)


@translates("aten.full.default", "aten.full_like.default")
def full(w: GraphWriter, node: fx.Node, like: Any, fill: Any, *rest: Any) -> ir.Value:
    return filled(w, shape_of(node), fill, node.meta["val"].dtype)


@translates("aten.new_full.default")
def new_full(w: GraphWriter, node: fx.Node, like: Any, size: Any, fill: Any, *rest: Any) -> ir.Value:
    return filled(w, shape_of(node), fill, node.meta["val"].dtype)


@translates("aten.scalar_tensor.default")
def scalar_tensor(w: GraphWriter, node: fx.Node, fill: Any, *rest: Any) -> ir.Value:
    return w.tensor(fill, node.meta["val"].dtype)


@translates("aten.arange.default")
def arange(w: GraphWriter, node: fx.Node, end: Any, *rest: Any) -> ir.Value:
    return _range(w, node, 0, end, 1)


@translates("aten.arange.start")
def arange_start(w: GraphWriter, node: fx.Node, start: Any, end: Any, *rest: Any) -> ir.Value:
    return _range(w, node, start, end, 1)


@translates("aten.arange.start_step")
def arange_start_step(w: GraphWriter, node: fx.Node, start: Any, end: Any, step: Any, *rest: Any) -> ir.Value:
    return _range(w, node, start, end, step)


def _range(w: GraphWriter, node: fx.Node, start: Any, end: Any, step: Any) -> ir.Value:
    dtype = node.meta["val"].dtype
    bounds = (start, end, step)
    if not any(isinstance(one, fx.Node) for one in bounds):
        return w.constant(torch.arange(start, end, step, dtype=dtype).numpy())
    return w.emit("Range", *(w.tensor(one, dtype) for one in bounds))


@translates("aten.tensor.default")
def tensor(w: GraphWriter, node: fx.Node, data: Any, *rest: Any) -> ir.Value:
    return w.constant(torch.tensor(data, dtype=node.meta["val"].dtype).numpy())
