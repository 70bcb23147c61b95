"""Products of matrices."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import Tensor, fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import operator_name, translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.backends.onnx_runtime.translations.shapes import shape_of, transposed


def transposed_weight(w: GraphWriter, weight: fx.Node) -> ir.Value:
    """A weight [out, in] as [in, out]: stored that way, unless it is stored as it is for another use already."""
    if (
        operator_name(weight) in ("aten.transpose.int", "aten.t.default", "aten.permute.default")
        and len(shape_of(weight)) == 2
    ):
        return w.value(weight.all_input_nodes[0])
    shared_use = any(str(user.target).startswith(("aten.embedding", "regraft")) for user in weight.users)
    if weight.op == "get_attr" and not shared_use:
        return w.weight(weight, _transpose, "transposed")
    return transposed(w, w.value(weight), [1, 0])


def _transpose(weight: Tensor) -> Tensor:
    return weight.t()


@translates("aten.linear.default")
def linear(w: GraphWriter, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> ir.Value:
    product = w.emit("MatMul", w.value(x), transposed_weight(w, weight))
    return product if bias is None else w.emit("Add", product, w.value(bias))


@translates("aten.addmm.default")
def addmm(w: GraphWriter, node: fx.Node, bias: fx.Node, x: fx.Node, weight: fx.Node, beta: Any, alpha: Any) -> ir.Value:
    return w.emit("Gemm", w.value(x), w.value(weight), w.value(bias), alpha=float(alpha), beta=float(beta))


@translates("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(w: GraphWriter, node: fx.Node, x: fx.Node, y: fx.Node) -> ir.Value:
    return w.emit("MatMul", w.value(x), w.value(y))


@translates("aten.baddbmm.default")
def baddbmm(w: GraphWriter, node: fx.Node, added: fx.Node, x: fx.Node, y: fx.Node, beta: Any, alpha: Any) -> ir.Value:
    dtype = result_type(node)
    product = w.emit("MatMul", w.value(x), w.value(y))
    if alpha != 1:
        product = w.emit("Mul", product, w.tensor(alpha, dtype))
    if beta == 0:
        return product
    scaled = w.value(added) if beta == 1 else w.emit("Mul", w.value(added), w.tensor(beta, dtype))
    return w.emit("Add", product, scaled)
