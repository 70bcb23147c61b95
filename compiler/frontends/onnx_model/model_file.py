"""Reads an ONNX file into memory: protobuf, external data, functions inlined. Runs nothing from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import CompilerError
from compiler.frontends.traced_module import first_line

if TYPE_CHECKING:
    import onnx_ir as ir


def read_model(doing: str, path: Path) -> ir.Model:
    """The model in a file. Raises CompilerError when it is no ONNX model or damaged."""
    import onnx_ir as ir

    try:
        model = ir.load(path)
    except Exception as error:  # protobuf, decoding and missing data each raise their own
        raise CompilerError(doing, f"it is no ONNX model ({first_line(error)})", "It may be damaged.") from error
    return prepared(doing, model)


def prepared(doing: str, model: ir.Model) -> ir.Model:
    """The model with its functions inlined."""
    from onnx_ir.passes.common import InlinePass

    if model.functions:
        try:
            InlinePass()(model)
        except Exception as error:
            problem = f"its functions cannot be inlined ({first_line(error)})"
            raise CompilerError(doing, problem, "The file is damaged.") from error
    return model
