"""Products with one weight an expert, as transformers sorts tokens for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.errors import CompilerError


@translates("aten.histc.default")
def histc(w: GraphWriter, node: fx.Node, x: fx.Node, bins: int, minimum: Any, maximum: Any) -> ir.Value:
    """Counts of whole numbers, one bin each: the sum of a one-hot."""
    if maximum - minimum != bins - 1:
        problem = f"a histogram of {bins} bins from {minimum} to {maximum}"
        raise CompilerError("lowering to ONNX", problem, "Use one bin for every whole number.", node.name)
    numbers = w.constant(np.arange(minimum, maximum + 1), np.int64)
    flat = w.emit("Reshape", w.tensor(x, torch.int64), w.constant([-1, 1], np.int64))
    hits = w.cast(w.emit("Equal", flat, numbers), result_type(node))
    return w.emit("ReduceSum", hits, w.constant([0], np.int64), keepdims=0)


@translates("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")
def grouped_product(w: GraphWriter, node: fx.Node, x: fx.Node, weight: fx.Node, ends: fx.Node, *rest: Any) -> ir.Value:
    """x [rows, in], sorted by expert; weight [experts, in, out]; ends [experts]: rows of expert e stop before ends[e].

    The rows are cut at `ends`, and each piece is multiplied by its own weight.
    """
    count = int(weight.meta["val"].shape[0])
    stops = w.tensor(ends, torch.int64)
    first, axis = w.constant([0], np.int64), w.constant([0], np.int64)
    pieces = []
    for expert in range(count):
        stop = w.emit("Gather", stops, w.constant([expert], np.int64), axis=0)
        rows = w.emit("Slice", w.value(x), first, stop, axis)
        own = w.emit("Gather", w.value(weight), w.constant(expert, np.int64), axis=0)
        pieces.append(w.emit("MatMul", rows, own))
        first = stop
    return w.emit("Concat", *pieces, axis=0)
