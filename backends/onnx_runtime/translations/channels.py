"""Operators that split or regroup channels: gated linear units, pixel shuffling."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates


@translates("aten.glu.default")
def glu(w: GraphWriter, node: fx.Node, x: fx.Node, dim: int) -> ir.Value:
    left, right = w.emit_several("Split", w.value(x), outputs=2, axis=dim, num_outputs=2)
    return w.emit("Mul", left, w.emit("Sigmoid", right))


@translates("aten.pixel_shuffle.default")
def pixel_shuffle(w: GraphWriter, node: fx.Node, x: fx.Node, factor: int) -> ir.Value:
    return w.emit("DepthToSpace", w.value(x), blocksize=factor, mode="CRD")
