"""Operators that change the element type."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.casting import converted, reinterpreted
from compiler.frontends.onnx_model.element_types import CARRIERS
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator


@operator("Cast")
def cast_to_name(x: Tensor, *, to: str | int) -> Tensor:
    """The first version names the type; some of its models number it all the same."""
    return converted(x, to if isinstance(to, str) else type_name(to))


@operator("Cast", since=6)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return converted(x, type_name(to), saturate=bool(saturate), round_mode=round_mode)


@operator("CastLike")
def cast_like(x: Tensor, like: Value, *, saturate: int = 1, round_mode: str = "up", node: NodeContext) -> Tensor:
    """The second input's ONNX type counts: its dtype alone does not tell int4 from int8."""
    stated = node.input_type(1)
    name = stated.name if stated is not None else name_of_dtype(like.dtype)
    return converted(x, name, saturate=bool(saturate), round_mode=round_mode)


@operator("BitCast")
def bit_cast(x: Tensor, *, to: int, node: NodeContext) -> Tensor:
    stated = node.input_type(0)
    source = stated.name if stated is not None else name_of_dtype(x.dtype)
    try:
        return reinterpreted(x, source, type_name(to))
    except ValueError as error:
        raise node.refuse(str(error), "It goes between types of one width.") from error


def type_name(number: int) -> str:
    """The name of an ONNX element type."""
    import onnx_ir as ir

    name: str = ir.DataType(number).name
    return name


def name_of_dtype(dtype: torch.dtype) -> str:
    """The first ONNX type that a torch dtype carries: its own."""
    return next(name for name, carried in CARRIERS.items() if carried == dtype)
