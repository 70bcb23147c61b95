"""Optionals: a value, or None where there is none. Which of the two it is, is known while a model is read."""

from __future__ import annotations

from typing import Any

import torch

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator


@operator("Optional")
def optional(value: Value = None) -> Any:
    return value


@operator("OptionalHasElement")
def optional_has_element(value: Value = None) -> Known:
    return Known.of(value is not None, torch.bool)


@operator("OptionalGetElement")
def optional_get_element(value: Value, *, node: NodeContext) -> Any:
    if value is None:
        raise node.refuse("the optional holds nothing", "Ask with OptionalHasElement first.")
    return value
