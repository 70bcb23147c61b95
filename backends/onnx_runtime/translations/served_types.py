"""Dtypes that an ONNX Runtime kernel lacks are computed in a wider one that it has, between two casts."""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.errors import CompilerError


def served_type(dtype: torch.dtype, served: Collection[torch.dtype]) -> torch.dtype:
    """`dtype` itself where it is one of `served`, otherwise float32 or an integer type that holds its numbers."""
    if dtype in served:
        return dtype
    if dtype.is_floating_point:
        return torch.float32
    return torch.int64 if torch.int32 not in served or dtype in (torch.uint32, torch.uint64) else torch.int32


def in_served_type(
    w: GraphWriter, dtype: torch.dtype, served: Collection[torch.dtype], emit: Callable[[torch.dtype], ir.Value]
) -> ir.Value:
    """What `emit` gives when it takes its operands in the served type, cast back to `dtype`."""
    computed = served_type(dtype, served)
    value = emit(computed)
    return value if computed == dtype else w.cast(value, dtype)


def refuse_double(x: fx.Node, what: str) -> None:
    """Raise CompilerError where `x` is float64 and there are kernels for float32 alone, which would lose digits."""
    if x.meta["val"].dtype == torch.float64:
        hint = "Convert the model to float32."
        raise CompilerError("lowering to ONNX", f"ONNX Runtime has no kernel for {what} in float64", hint, x.name)
