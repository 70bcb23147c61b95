"""Logic on what is known while a model is read, conditions on symbolic sizes among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.operator_table import known_operator
from compiler.frontends.onnx_model.operators.known_numbers import each


@known_operator("Not")
def negation(x: Known) -> Known:
    return Known(each(torch.sym_not, x.objects()), torch.bool)


def _connective(function: Callable[[Any, Any], Any]) -> Callable[[Known, Known], Known]:
    return lambda left, right: Known(each(function, left.objects(), right.objects()), torch.bool)


for _name, _function in {
    "And": lambda left, right: left & right,
    "Or": lambda left, right: left | right,
    "Xor": lambda left, right: (left | right) & torch.sym_not(left & right),  # type: ignore[no-untyped-call]
}.items():
    known_operator(_name)(_connective(_function))
