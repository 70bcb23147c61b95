"""Changes of dtype, and operators that change nothing."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import DATA_TYPES, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.errors import CompilerError


@translates(
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten.to.other",
    "aten._to_copy.default",
    "aten.type_as.default",
)
def to(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
    return w.tensor(x, result_type(node))


@translates(
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.dropout.default",
    "aten.lift_fresh_copy.default",
)
def same(w: GraphWriter, node: fx.Node, x: fx.Node, *rest: Any) -> ir.Value:
    return w.value(x)


@translates("aten.view.dtype")
def view_as_dtype(w: GraphWriter, node: fx.Node, x: fx.Node, dtype: torch.dtype) -> ir.Value:
    """The same bits as another dtype. Raises CompilerError where its width is another, which changes the shape."""
    source = result_type(x)
    if source == dtype:
        return w.value(x)
    if source.itemsize != dtype.itemsize:
        problem = f"{source} viewed as {dtype}, which is of another width"
        raise CompilerError("lowering to ONNX", problem, "Reinterpret numbers as ones of the same width.", node.name)
    if torch.bool in (source, dtype):
        return w.cast(w.value(x), dtype)
    return w.emit("BitCast", w.value(x), to=int(DATA_TYPES[dtype]))
